// Counts what the kernels allocate for a decode step that they have computed before. Built with sanitizers by
// test_attention_sanitized.py. Prints the number: it should be zero.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "attention/work.h"
#include "linear.h"

namespace {

long allocations = 0;

}  // namespace

void* operator new(std::size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace kvtrove;
using namespace kvtrove::attention;

int main() {
    constexpr int kSequences = 3, kContext = 700, kWidth = kContext / 16 + 1;
    Layer layer;
    layer.stored = Element::float32, layer.tiled = true, layer.num_blocks = kSequences * kWidth;
    layer.num_heads = 4, layer.kv_heads = 2, layer.head_dim = 16, layer.block_size = 16;
    std::vector<float> arena(2 * layer.num_blocks * layer.kv_heads * layer.block_size * layer.head_dim);
    const auto stride = static_cast<std::ptrdiff_t>(layer.kv_heads * layer.block_size * layer.head_dim * sizeof(float));
    layer.k = {reinterpret_cast<std::uint8_t*>(arena.data()), stride};
    layer.v = {layer.k.data + layer.num_blocks * stride, stride};

    std::vector<std::int32_t> table(layer.num_blocks);
    std::vector<std::int64_t> slots(kSequences);
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i);
    Batch batch;
    batch.query_start = {0, 1, 2, 3}, batch.start = {kContext, 20, kContext / 2};
    batch.table = table.data(), batch.table_width = kWidth, batch.slots = slots.data();
    for (int s = 0; s < kSequences; ++s) slots[s] = s * kWidth * 16 + batch.start[s];

    std::vector<float> q(kSequences * 64), k(kSequences * 32), v(k), out(q);
    const auto rows = [](std::vector<float>& values, int heads) {
        return Rows{reinterpret_cast<std::uint8_t*>(values.data()), heads * 16 * 4, Element::float32};
    };
    const PackedWeights bf16(300, 64, PackedWeights::Kind::bf16, Isa::portable);
    const PackedWeights int8(300, 64, PackedWeights::Kind::int8, Isa::portable);
    std::vector<float> x(64 * 40), y(300 * 40);
    Scratch scratch;
    const auto step = [&] {
        for (const std::size_t count : {1, 3, 40}) {
            bf16.multiply(x.data(), y.data(), Float::f32, count, nullptr);
            int8.multiply(x.data(), y.data(), Float::f32, count, nullptr);
        }
        check(layer, batch);
        store(layer, batch, rows(k, 2), rows(v, 2), 2);
        attend(layer, batch, rows(q, 4), rows(out, 4), nullptr, scratch, 2, detect_isa());
    };
    step();
    const long before = allocations;
    for (int i = 0; i < 5; ++i) step();
    std::printf("%ld\n", allocations - before);
}
