/* The C interface between cpflex and its MPI plugin: the plugin is built against the MPI found at build time, cpflex
   loads it at run time, so that one binary works with and without MPI. Plain C types only. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the table below; a plugin of another version is refused. */
#define CPFLEX_MPI_PLUGIN_VERSION 1

/* Calls return 0 or an MPI error code, which `describe` turns into text. Requests are opaque. */
typedef struct CpflexMpiTable {
  int (*initialize)(int *rank, int *worldSize);
  int (*startSend)(const void *data, int64_t sizeInBytes, int peer, void **request);
  int (*startReceive)(void *data, int64_t sizeInBytes, int peer, void **request);
  /* Sets *isDone; the request is gone once it is done. */
  int (*test)(void **request, int *isDone);
  /* Gives up a request that is not done. */
  void (*cancel)(void **request);
  void (*describe)(int code, char *text, int64_t capacity);
  int (*finalize)(void);
  /* Ends every process of the job. */
  void (*abort)(int code);
} CpflexMpiTable;

/* The plugin's one symbol: null for a version that it does not know. */
const CpflexMpiTable *cpflexMpiTable(int version);

#ifdef __cplusplus
}
#endif
