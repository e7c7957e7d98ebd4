#include "common/crc32c.h"

#include <array>
#include <cstring>

#if defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace kvtrove {

namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;  // reflected

// tables[k][b]: what byte b becomes when k bytes follow it (slicing by 8, Kounavis and Berry 2005).
using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

Tables make_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
        tables[0][byte] = crc;
    }
    for (std::size_t k = 1; k < 8; ++k) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xff];
        }
    }
    return tables;
}

#if defined(__x86_64__) || defined(__ARM_FEATURE_CRC32)
#define KVTROVE_CRC_INSTRUCTION 1

// An operator on a checksum: the exclusive or of the columns of its set bits.
using Operator = std::array<std::uint32_t, 32>;

std::uint32_t apply(const Operator& op, std::uint32_t crc) {
    std::uint32_t result = 0;
    for (int bit = 0; crc; crc >>= 1, ++bit) {
        if (crc & 1) result ^= op[bit];
    }
    return result;
}

// What 2^log2_bytes zero bytes do to a checksum, as four tables of one byte of it each.
class Zeros {
  public:
    explicit Zeros(int log2_bytes) {
        Operator op{};
        op[0] = kPolynomial;  // one zero bit
        for (int bit = 1; bit < 32; ++bit) op[bit] = 1u << (bit - 1);
        for (int doubled = 0; doubled < log2_bytes + 3; ++doubled) {
            Operator twice{};
            for (int bit = 0; bit < 32; ++bit) twice[bit] = apply(op, op[bit]);
            op = twice;
        }
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            for (int k = 0; k < 4; ++k) tables_[k][byte] = apply(op, byte << (8 * k));
        }
    }
    std::uint32_t operator()(std::uint32_t crc) const {
        return tables_[0][crc & 0xff] ^ tables_[1][(crc >> 8) & 0xff] ^ tables_[2][(crc >> 16) & 0xff] ^
               tables_[3][crc >> 24];
    }

  private:
    std::array<std::array<std::uint32_t, 256>, 4> tables_;
};

#if defined(__x86_64__)
#define KVTROVE_CRC_TARGET __attribute__((target("sse4.2")))
KVTROVE_CRC_TARGET inline std::uint64_t step8(std::uint64_t crc, std::uint64_t word) {
    return __builtin_ia32_crc32di(crc, word);
}
KVTROVE_CRC_TARGET inline std::uint32_t step1(std::uint32_t crc, std::uint8_t byte) {
    return __builtin_ia32_crc32qi(crc, byte);
}
bool has_instruction() { return __builtin_cpu_supports("sse4.2"); }
#else
#define KVTROVE_CRC_TARGET
inline std::uint64_t step8(std::uint64_t crc, std::uint64_t word) {
    return __crc32cd(static_cast<std::uint32_t>(crc), word);
}
inline std::uint32_t step1(std::uint32_t crc, std::uint8_t byte) { return __crc32cb(crc, byte); }
bool has_instruction() { return true; }
#endif

inline std::uint64_t load8(const std::uint8_t* at) {
    std::uint64_t word;
    std::memcpy(&word, at, sizeof word);
    return word;
}

// Three streams side by side, because the instruction starts every cycle and takes three:
//
//   | stream a: 2^log2 bytes | stream b | stream c |      crc = zeros(zeros(a) ^ b) ^ c
KVTROVE_CRC_TARGET std::uint32_t three_streams(std::uint32_t crc, const std::uint8_t*& at, std::size_t& size,
                                               int log2_bytes, const Zeros& zeros) {
    const std::size_t stream = std::size_t{1} << log2_bytes;
    while (size >= 3 * stream) {
        std::uint64_t a = crc, b = 0, c = 0;
        for (std::size_t i = 0; i < stream; i += 8) {
            a = step8(a, load8(at + i));
            b = step8(b, load8(at + stream + i));
            c = step8(c, load8(at + 2 * stream + i));
        }
        crc = zeros(zeros(static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b)) ^
              static_cast<std::uint32_t>(c);
        at += 3 * stream;
        size -= 3 * stream;
    }
    return crc;
}

KVTROVE_CRC_TARGET std::uint32_t by_instruction(std::uint32_t crc, const std::uint8_t* at, std::size_t size) {
    static const Zeros zeros_long(12), zeros_short(8);
    crc = three_streams(crc, at, size, 12, zeros_long);
    crc = three_streams(crc, at, size, 8, zeros_short);
    std::uint64_t wide = crc;
    for (; size >= 8; at += 8, size -= 8) wide = step8(wide, load8(at));
    crc = static_cast<std::uint32_t>(wide);
    for (; size; ++at, --size) crc = step1(crc, *at);
    return crc;
}
#endif

}  // namespace

std::uint32_t crc32c_by_tables(std::uint32_t crc, const void* data, std::size_t size) {
    static const Tables tables = make_tables();
    const auto* at = static_cast<const std::uint8_t*>(data);
    crc = ~crc;
    for (; size >= 8; at += 8, size -= 8) {
        const std::uint32_t low = crc ^ (at[0] | at[1] << 8 | at[2] << 16 | static_cast<std::uint32_t>(at[3]) << 24);
        crc = tables[7][low & 0xff] ^ tables[6][(low >> 8) & 0xff] ^ tables[5][(low >> 16) & 0xff] ^
              tables[4][low >> 24] ^ tables[3][at[4]] ^ tables[2][at[5]] ^ tables[1][at[6]] ^ tables[0][at[7]];
    }
    for (; size; ++at, --size) crc = (crc >> 8) ^ tables[0][(crc ^ *at) & 0xff];
    return ~crc;
}

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size) {
#if defined(KVTROVE_CRC_INSTRUCTION)
    static const bool available = has_instruction();
    if (available) return ~by_instruction(~crc, static_cast<const std::uint8_t*>(data), size);
#endif
    return crc32c_by_tables(crc, data, size);
}

}  // namespace kvtrove
