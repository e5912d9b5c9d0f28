/* Messages over MPI for cpflex; see MpiPlugin.h. Messages above 2 GiB are refused by count. */
#include "runtime/Comm/MpiPlugin.h"

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

static int initialize(int *rank, int *worldSize) {
  int isInitialized = 0, code = MPI_Initialized(&isInitialized);
  if (code == MPI_SUCCESS && !isInitialized)
    code = MPI_Init(NULL, NULL);
  /* Errors come back as codes, so that a lost peer is a message and not the end of the process. */
  if (code == MPI_SUCCESS)
    code = MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (code == MPI_SUCCESS)
    code = MPI_Comm_rank(MPI_COMM_WORLD, rank);
  if (code == MPI_SUCCESS)
    code = MPI_Comm_size(MPI_COMM_WORLD, worldSize);
  return code;
}

static int finish(MPI_Request *request, int code, void **result) {
  if (code != MPI_SUCCESS) {
    free(request);
    return code;
  }
  *result = request;
  return MPI_SUCCESS;
}

static int startSend(const void *data, int64_t sizeInBytes, int peer, void **result) {
  MPI_Request *request = malloc(sizeof(MPI_Request));
  if (!request || sizeInBytes > INT_MAX) {
    free(request);
    return MPI_ERR_COUNT;
  }
  return finish(request, MPI_Isend(data, (int)sizeInBytes, MPI_BYTE, peer, 0, MPI_COMM_WORLD, request), result);
}

static int startReceive(void *data, int64_t sizeInBytes, int peer, void **result) {
  MPI_Request *request = malloc(sizeof(MPI_Request));
  if (!request || sizeInBytes > INT_MAX) {
    free(request);
    return MPI_ERR_COUNT;
  }
  return finish(request, MPI_Irecv(data, (int)sizeInBytes, MPI_BYTE, peer, 0, MPI_COMM_WORLD, request), result);
}

static int test(void **request, int *isDone) {
  int code = MPI_Test((MPI_Request *)*request, isDone, MPI_STATUS_IGNORE);
  if (code == MPI_SUCCESS && *isDone) {
    free(*request);
    *request = NULL;
  }
  return code;
}

static void cancel(void **request) {
  MPI_Cancel((MPI_Request *)*request);
  MPI_Request_free((MPI_Request *)*request);
  free(*request);
  *request = NULL;
}

static void describe(int code, char *text, int64_t capacity) {
  char buffer[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, buffer, &length);
  strncpy(text, buffer, (size_t)capacity - 1);
  text[capacity - 1] = 0;
}

static int finalize(void) {
  int isFinalized = 0;
  MPI_Finalized(&isFinalized);
  return isFinalized ? MPI_SUCCESS : MPI_Finalize();
}

static void abortJob(int code) { MPI_Abort(MPI_COMM_WORLD, code); }

const CpflexMpiTable *cpflexMpiTable(int version) {
  static const CpflexMpiTable table = {initialize, startSend, startReceive, test, cancel, describe, finalize, abortJob};
  return version == CPFLEX_MPI_PLUGIN_VERSION ? &table : NULL;
}
