// Python's view of the attention kernels.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attention/attention.h"

namespace kvtrove {

using Bytes = nanobind::ndarray<nanobind::device::cpu>;
using Numbers = nanobind::ndarray<const std::int64_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using Table = nanobind::ndarray<const std::int32_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

// [tokens][heads][dim] in the caller's memory: its address, bytes from token to token, and name of its dtype.
using Address = nanobind::typed<nanobind::tuple, std::uintptr_t, std::ptrdiff_t, std::string>;
// cos, sin [tokens][half] in the caller's memory, half, and their dtype.
using Angles = nanobind::typed<nanobind::tuple, std::uintptr_t, std::uintptr_t, int, std::string>;

// out [tokens][heads][dim] and lse [tokens][heads] of other keys, float32, in the caller's memory.
using Earlier = nanobind::typed<nanobind::tuple, std::uintptr_t, std::uintptr_t>;

attention::Rope rope_of(const Angles& angles);

// The layer and the arrays that keep its memory alive.
struct BoundLayer {
    attention::Layer layer;
    std::vector<Bytes> kept;

    // k, v, shape, select: fields of PagedSide, PagedShape and PagedSelection.
    BoundLayer(const nanobind::dict& k, const nanobind::dict& v, const nanobind::dict& shape,
               const std::optional<nanobind::dict>& select);

private:
    Bytes array(const nanobind::dict& side, const char* name);
    attention::Side side_of(const nanobind::dict& side);
    void check_shape() const;
    void check_side(const attention::Side& side) const;
    attention::Selection selection_of(const nanobind::dict& select);
};

// What a check of a step depends on.
struct Checked {
    attention::Reach reach;
    std::int64_t num_blocks;
    int block_size;
};

// A step, the arrays that keep its tables alive, and the layers it was checked for.
struct BoundBatch {
    attention::Batch batch;
    Table table;
    Numbers slots;
    mutable std::vector<Checked> checked;

    BoundBatch(const Numbers& query_start, const Numbers& start, const Table& block_table, const Numbers& slots);
    void check_for(const attention::Layer& layer) const;
};

// The kernels at one level, with the memory that calls reuse.
struct BoundKernel {
    Isa isa;
    int num_threads;
    attention::Scratch scratch;

    BoundKernel(std::string_view wanted, int num_threads) : isa(choose_isa(wanted)), num_threads(num_threads) {}
    void store(const BoundLayer& layer, const BoundBatch& batch, const Address& k, const Address& v,
               const std::optional<Angles>& angles) const;
    void rotate(const BoundLayer& layer, const BoundBatch& batch, const Address& q, const Angles& angles) const;
    void attend(const BoundLayer& layer, const BoundBatch& batch, const Address& q, const Address& out,
                std::uintptr_t lse, const std::optional<Earlier>& earlier);
    // All that a layer does: k and v are none when another layer stores for it.
    void run(const BoundLayer& layer, const BoundBatch& batch, const Address& q, const std::optional<Address>& k,
             const std::optional<Address>& v, const Address& out, const std::optional<Angles>& angles);
    // to: float32 [kv_heads, n, dim] of the keys, or the values, in slots [n].
    void read(const BoundLayer& layer, bool keys, const Numbers& slots, std::uintptr_t to) const;
    // from: slots [kv_heads * n]. to: slots [n].
    void move(const BoundLayer& layer, const Numbers& from, const Numbers& to) const;
    std::size_t scratch_bytes() const {
        return scratch.memory.capacity() * sizeof(float) + scratch.kept.capacity() * sizeof(std::uint64_t);
    }
};

}  // namespace kvtrove
