/* The structs of DLPack, the exchange of arrays between libraries: https://github.com/dmlc/dlpack (versions 0.8 to 1.x,
 * Apache-2.0). Declared here because their layout is a public ABI, so that nothing else is needed to build; a program
 * that includes <dlpack/dlpack.h> too gets whichever comes first, and both agree. */
#ifndef DLPACK_DLPACK_H_
#define DLPACK_DLPACK_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The major version whose layout is declared here. */
#define DLPACK_MAJOR_VERSION 1
#define DLPACK_MINOR_VERSION 0

/** Set in flags of a versioned tensor whose elements must not be written. */
#define DLPACK_FLAG_BITMASK_READ_ONLY (1UL << 0UL)

typedef struct {
  uint32_t major;
  uint32_t minor;
} DLPackVersion;

/** Where memory is. Other values exist; cpflex takes these. */
#ifdef __cplusplus
typedef enum : int32_t {
#else
typedef enum {
#endif
  kDLCPU = 1,
  kDLCUDA = 2,
  kDLCUDAHost = 3,
  kDLCUDAManaged = 13
} DLDeviceType;

typedef struct {
  DLDeviceType device_type;
  int32_t device_id;
} DLDevice;

typedef enum { kDLInt = 0U, kDLUInt = 1U, kDLFloat = 2U, kDLBfloat = 4U, kDLBool = 6U } DLDataTypeCode;

typedef struct {
  uint8_t code;   /**< DLDataTypeCode */
  uint8_t bits;   /**< of one element */
  uint16_t lanes; /**< elements of a vector; 1 */
} DLDataType;

typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides;     /**< in elements; NULL: dense in C order */
  uint64_t byte_offset; /**< of the first element from data */
} DLTensor;

/** A tensor with its owner, before DLPack 1.0. */
typedef struct DLManagedTensor {
  DLTensor dl_tensor;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensor *self); /**< may be NULL */
} DLManagedTensor;

/** The same from DLPack 1.0 on. */
typedef struct DLManagedTensorVersioned {
  DLPackVersion version;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensorVersioned *self); /**< may be NULL */
  uint64_t flags;
  DLTensor dl_tensor;
} DLManagedTensorVersioned;

#ifdef __cplusplus
}
#endif
#endif
