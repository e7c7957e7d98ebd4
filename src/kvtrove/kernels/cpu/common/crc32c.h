// CRC-32C (Castagnoli, RFC 3720 B.4): the checksum of rows that leave the process.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtrove {

// The checksum of `before` followed by `size` bytes, where `crc` is that of `before` (0 of nothing). The same value on
// every machine.
std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size);

// The same by tables, whatever the processor has: what tests compare the instruction with.
std::uint32_t crc32c_by_tables(std::uint32_t crc, const void* data, std::size_t size);

}  // namespace kvtrove
