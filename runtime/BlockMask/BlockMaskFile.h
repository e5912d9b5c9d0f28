// How is a BlockMask kept in a file? A versioned, checksummed binary form.
//
// Little-endian: the 8 bytes "cpfxmask", u32 version, u64 FNV-1a of everything after it, then i64
// qLen, kvLen, tileQ, tileKV, batch, heads, the number of row sets, i32 rowSetOf[batch * heads],
// and per row set i64 number of runs, i32 rowBegin[], and runs as i32 begin, i32 end, u8 class, u8
// residual.
#pragma once

#include "runtime/contract/BlockMask.h"
#include "runtime/contract/Status.h"

#include <string>
#include <string_view>

namespace cpflex {

/// The bytes of a mask.
std::string toBytes(const BlockMask &mask);

/// The mask in `bytes`. DataLoss when they are cut, changed or not a mask; Unsupported for another
/// version.
StatusOr<BlockMask> blockMaskFromBytes(std::string_view bytes);

/// Writes a mask to a file. Unavailable, with the system's reason, when that fails.
Status saveBlockMask(const BlockMask &mask, const std::string &path);

/// Reads a mask from a file; errors as blockMaskFromBytes and saveBlockMask.
StatusOr<BlockMask> loadBlockMask(const std::string &path);

} // namespace cpflex
