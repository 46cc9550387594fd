/* In place of NVIDIA's libnvidia-ml.so.1: its machine is the text file named by FAKE_NVML, which
 * is read again at each call, so that cards may fail, fill up or vanish while a program runs.
 *
 *   card UUID NAME TOTAL_MIB FREE_MIB MAJOR MINOR ECC MIG   (ECC -1: has none; MIG 1: is split)
 *   mig CARD UUID TOTAL_MIB FREE_MIB INSTANCE
 *   process UUID PID MIB
 *   busy UUID PERCENT CELSIUS (without it, the card reports no statistics)
 *   lost UUID                the card has fallen off the bus
 *   xid CARD INSTANCE NUMBER an error of the driver (INSTANCE -1: of the whole card)
 *   broken CODE              the driver does not answer
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, TIMEOUT = 10, LOST = 15 };
#define MAX_ENTRIES 32
#define MIB (1024ULL * 1024ULL)

typedef struct {
    char uuid[80], name[80], card[80];
    unsigned long long total, free;
    int major, minor, ecc, split, instance, lost, reports;
    unsigned percent, celsius;
} Device;
typedef struct { char uuid[80]; unsigned pid; unsigned long long mib; } Process;
typedef struct { char card[80]; int instance; unsigned long long number; } Xid;

/* One set per thread: several query at once. */
static _Thread_local Device devices[MAX_ENTRIES];
static _Thread_local Process processes[MAX_ENTRIES];
static _Thread_local Xid xids[MAX_ENTRIES];
static _Thread_local int n_devices, n_processes, n_xids, n_reported, broken;

static Device *by_uuid(const char *uuid) {
    for (int i = 0; i < n_devices; i++)
        if (!strcmp(devices[i].uuid, uuid)) return &devices[i];
    return NULL;
}

static void look(void) {
    char line[512], a[80], b[80];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    n_devices = n_processes = n_xids = broken = 0;
    while (file && fgets(line, sizeof line, file)) {
        Device d = {0};
        Process p;
        unsigned percent, celsius;
        Xid x;
        if (sscanf(line, "card %79s %79s %llu %llu %d %d %d %d", d.uuid, d.name, &d.total, &d.free,
                   &d.major, &d.minor, &d.ecc, &d.split) == 8) {
            d.instance = -1;
            devices[n_devices++] = d;
        } else if (sscanf(line, "mig %79s %79s %llu %llu %d", d.card, d.uuid, &d.total, &d.free,
                          &d.instance) == 5) {
            devices[n_devices++] = d;
        } else if (sscanf(line, "process %79s %u %llu", p.uuid, &p.pid, &p.mib) == 3) {
            processes[n_processes++] = p;
        } else if (sscanf(line, "xid %79s %d %llu", x.card, &x.instance, &x.number) == 3) {
            xids[n_xids++] = x;
        } else if (sscanf(line, "busy %79s %u %u", a, &percent, &celsius) == 3 && by_uuid(a)) {
            by_uuid(a)->reports = 1;
            by_uuid(a)->percent = percent;
            by_uuid(a)->celsius = celsius;
        } else if (sscanf(line, "lost %79s", a) == 1 && by_uuid(a)) {
            by_uuid(a)->lost = 1;
        } else if (sscanf(line, "broken %79s", b) == 1) {
            broken = atoi(b);
        }
    }
    if (file) fclose(file);
}

/* Handles are indices of the table, from 1. */
static Device *at(void *handle) {
    size_t place = (size_t)handle;
    look();
    return place >= 1 && place <= (size_t)n_devices ? &devices[place - 1] : NULL;
}
static void *handle_of(Device *device) { return (void *)(size_t)(device - devices + 1); }

#define DEVICE(handle)                \
    Device *device = at(handle);      \
    if (broken) return broken;        \
    if (!device) return NOT_FOUND;    \
    if (device->lost) return LOST

int nvmlInitWithFlags(unsigned flags) { (void)flags; look(); return broken; }
int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "Fault"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    look();
    *count = 0;
    for (int i = 0; i < n_devices; i++) *count += !devices[i].card[0];
    return broken;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    look();
    for (int i = 0; i < n_devices; i++)
        if (!devices[i].card[0] && index-- == 0) {
            *handle = handle_of(&devices[i]);
            return devices[i].lost ? LOST : OK;
        }
    return INVALID;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    look();
    Device *device = by_uuid(uuid);
    if (!device) return NOT_FOUND;
    *handle = handle_of(device);
    return OK;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    DEVICE(handle);
    if (device->major < 8) return UNSUPPORTED;
    *current = *pending = (unsigned)device->split;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    DEVICE(handle);
    *count = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **mig) {
    DEVICE(handle);
    for (int i = 0; i < n_devices; i++)
        if (!strcmp(devices[i].card, device->uuid) && index-- == 0) {
            *mig = handle_of(&devices[i]);
            return OK;
        }
    return NOT_FOUND;
}

int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is_mig) {
    DEVICE(handle);
    *is_mig = device->card[0] != 0;
    return OK;
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *instance) {
    DEVICE(handle);
    *instance = (unsigned)device->instance;
    return OK;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *handle, void **card) {
    DEVICE(handle);
    *card = handle_of(by_uuid(device->card));
    return OK;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    DEVICE(handle);
    snprintf(uuid, length, "%s", device->uuid);
    return OK;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    DEVICE(handle);
    if (device->card[0]) return UNSUPPORTED;
    snprintf(name, length, "%s", device->name);
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    DEVICE(handle);
    memory[0] = device->total * MIB;
    memory[1] = device->free * MIB;
    memory[2] = memory[0] - memory[1];
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    DEVICE(handle);
    if (!device->reports) return UNSUPPORTED;
    rates[0] = device->percent;
    rates[1] = 0;
    return OK;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    DEVICE(handle);
    if (!device->reports || sensor != 0) return UNSUPPORTED;
    *celsius = device->celsius;
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    DEVICE(handle);
    *major = device->major;
    *minor = device->minor;
    return OK;
}

int nvmlDeviceGetEccMode(void *handle, unsigned *current, unsigned *pending) {
    DEVICE(handle);
    if (device->ecc < 0) return UNSUPPORTED;
    *current = *pending = (unsigned)device->ecc;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, void *out) {
    struct { unsigned pid; unsigned long long bytes; unsigned instances[2]; } *entry = out;
    DEVICE(handle);
    unsigned room = *count;
    *count = 0;
    for (int i = 0; i < n_processes; i++) {
        if (strcmp(processes[i].uuid, device->uuid)) continue;
        if (*count < room) {
            entry[*count].pid = processes[i].pid;
            entry[*count].bytes = processes[i].mib * MIB;
        }
        (*count)++;
    }
    return *count > room ? SMALL : OK;
}

int nvmlEventSetCreate(void **set) { *set = calloc(1, sizeof(Device)); return OK; }

int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) {
    DEVICE(handle);
    if (types != 8 || device->card[0]) return INVALID; /* errors only, and of whole cards */
    *(Device *)set = *device;
    return OK;
}

int nvmlEventSetWait_v2(void *set, void *out, unsigned timeout_ms) {
    struct { void *device; unsigned long long type, data; unsigned gpu, compute; } *event = out;
    (void)timeout_ms;
    look();
    while (n_reported < n_xids) {
        Xid *xid = &xids[n_reported++];
        if (strcmp(xid->card, ((Device *)set)->uuid)) continue;
        event->type = 8;
        event->data = xid->number;
        event->gpu = event->compute = (unsigned)xid->instance;
        return OK;
    }
    return TIMEOUT;
}
