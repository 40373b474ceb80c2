/* A small libnvidia-ml.so.1, so that the real pynvml can be tried where there is no GPU.
 *
 * The file named by FAKE_NVML says what there is; it is read at every call, so that a test can
 * change it under a running agent. One line each, its words in this order:
 *
 *   init RETURN                                          what nvmlInit returns
 *   dead RETURN                                          what everything else returns, if not 0
 *   gpu STATUS HANG UTIL USED TOTAL PROCESSES MIG UUID   the next GPU
 *   mig STATUS HANG UTIL USED TOTAL PROCESSES 0 UUID     an instance of the GPU before it
 *
 * STATUS is what every call for it returns; HANG is the seconds that such a call takes; UTIL is a
 * percentage, -1 for NVML_ERROR_NOT_SUPPORTED; PROCESSES are pids with commas, - for none, ! for
 * NVML_ERROR_NO_PERMISSION; MIG is 1 for a GPU in MIG mode.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7, LOST = 15 };

typedef struct {
    int status, hang, mig, parent;
    int util;
    unsigned long long used, total;
    char processes[128], uuid[64];
} Device;

typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } Process;

static Device devices[16];
static int count, init_result, dead;

static int load(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512], word[8];
    int number = 0, parent = -1;
    init_result = dead = 0;
    while (file && fgets(line, sizeof line, file) && number < 16) {
        Device *d = &devices[number];
        if (sscanf(line, "init %d", &init_result) == 1 || sscanf(line, "dead %d", &dead) == 1)
            continue;
        if (sscanf(line, "%7s %d %d %d %llu %llu %127s %d %63s", word, &d->status, &d->hang,
                   &d->util, &d->used, &d->total, d->processes, &d->mig, d->uuid) == 9) {
            if (!strcmp(word, "gpu"))
                parent = number;
            d->parent = strcmp(word, "gpu") ? parent : -1;
            number++;
        }
    }
    if (file)
        fclose(file);
    count = number;
    return dead;
}

/* A handle is the number of a line, plus one. */
static int find(void *handle, Device **found) {
    int wrong = load();
    long number = (long)handle - 1;
    if (wrong)
        return wrong;
    if (number < 0 || number >= count)
        return NOT_FOUND;
    *found = &devices[number];
    if ((*found)->hang)
        sleep((*found)->hang);
    return (*found)->status;
}

/* The nth line whose parent is this one. */
static int pick(int parent, unsigned int index, void **handle) {
    for (int i = 0; i < count; i++)
        if (devices[i].parent == parent && index-- == 0) {
            *handle = (void *)(long)(i + 1);
            return devices[i].status == LOST ? LOST : OK;
        }
    return NOT_FOUND;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; load(); return init_result; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int result) { (void)result; return "fake error"; }

int nvmlDeviceGetCount_v2(unsigned int *gpus) {
    int wrong = load();
    *gpus = 0;
    for (int i = 0; i < count; i++)
        *gpus += devices[i].parent < 0;
    return wrong;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    int wrong = load();
    return wrong ? wrong : pick(-1, index, handle);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned int size) {
    Device *d;
    int wrong = find(handle, &d);
    if (!wrong)
        snprintf(uuid, size, "%s", d->uuid);
    return wrong;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned int size) {
    Device *d;
    int wrong = find(handle, &d);
    if (!wrong)
        snprintf(name, size, "Fake H200");
    return wrong;
}

int nvmlDeviceGetUtilizationRates(void *handle, Utilization *rates) {
    Device *d;
    int wrong = find(handle, &d);
    if (wrong)
        return wrong;
    rates->gpu = d->util;
    return d->util < 0 || d->mig || d->parent >= 0 ? NOT_SUPPORTED : OK;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, MemoryV2 *memory) {
    Device *d;
    int wrong = find(handle, &d);
    if (wrong)
        return wrong;
    memory->total = d->total;
    memory->used = d->used;
    return OK;
}

static int processes(void *handle, unsigned int *size, Process *table) {
    Device *d;
    int wrong = find(handle, &d);
    unsigned int found = 0, room = *size;
    char copy[128];
    if (wrong)
        return wrong;
    if (d->processes[0] == '!')
        return NO_PERMISSION;
    snprintf(copy, sizeof copy, "%s", d->processes[0] == '-' ? "" : d->processes);
    for (char *word = strtok(copy, ","); word; word = strtok(NULL, ","), found++)
        if (found < room)
            table[found].pid = atoi(word);
    *size = found;
    return found > room ? TOO_SMALL : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *size, Process *table) {
    return processes(handle, size, table);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned int *size, Process *table) {
    (void)handle, (void)table;
    *size = 0;
    return OK;
}

int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
    Device *d;
    int wrong = find(handle, &d);
    if (!wrong)
        *current = *pending = d->mig;
    return wrong;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned int *most) {
    (void)handle;
    *most = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned int index, void **instance) {
    int wrong = load();
    return wrong ? wrong : pick((int)(long)handle - 1, index, instance);
}
