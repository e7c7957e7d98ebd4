#include "binding/attention.h"

#include <stdexcept>

#include "binding/bindings.h"

namespace nb = nanobind;

namespace kvtrove {

namespace {

using attention::Element;

Element element_named(std::string_view name) {
    if (name == "float32") return Element::float32;
    if (name == "float16") return Element::float16;
    if (name == "bfloat16") return Element::bfloat16;
    if (name == "int8") return Element::int8;
    if (name == "float8_e4m3fn") return Element::float8;
    if (name == "int4") return Element::int4;
    if (name == "int2") return Element::int2;
    throw std::invalid_argument("'" + std::string(name) + "' is not one of float32, float16, bfloat16, int8, float8_e4m3fn, int4, int2");
}

// A plane [num_blocks, ...] whose blocks are contiguous and hold `elements` of `bytes` bytes each.
attention::Plane plane_of(const char* name, const Bytes& array, std::int64_t elements, std::size_t bytes) {
    std::int64_t inner = 1;
    bool contiguous = array.ndim() > 1 && array.itemsize() == bytes;
    for (std::size_t i = array.ndim(); contiguous && i-- > 1;) {
        contiguous = array.shape(i) == 1 || array.stride(i) == inner;
        inner *= static_cast<std::int64_t>(array.shape(i));
    }
    if (!contiguous || inner != elements) {
        throw std::invalid_argument(std::string(name) + ": each block must be " + std::to_string(elements) +
                                    " contiguous elements of " + std::to_string(bytes) + " bytes");
    }
    return {static_cast<std::uint8_t*>(array.data()), static_cast<std::ptrdiff_t>(array.stride(0) * bytes)};
}

attention::Rows rows_of(const Address& address) {
    auto* const data = reinterpret_cast<std::uint8_t*>(nb::cast<std::uintptr_t>(address[0]));
    const Element element = element_named(nb::cast<std::string_view>(address[2]));
    if (element > Element::bfloat16) throw std::invalid_argument("queries, keys and values are floating-point numbers");
    return {data, nb::cast<std::ptrdiff_t>(address[1]), element};
}

}  // namespace

attention::Rope rope_of(const Angles& angles) {
    const auto at = [&](int i) { return reinterpret_cast<const std::uint8_t*>(nb::cast<std::uintptr_t>(angles[i])); };
    return {at(0), at(1), nb::cast<int>(angles[2]), element_named(nb::cast<std::string_view>(angles[3]))};
}

BoundLayer::BoundLayer(const nb::dict& k, const nb::dict& v, const nb::dict& shape, const std::optional<nb::dict>& select) {
    const auto number = [&](const char* name) { return nb::cast<std::int64_t>(shape[name]); };
    layer.num_heads = static_cast<int>(number("num_heads")), layer.kv_heads = static_cast<int>(number("kv_heads"));
    layer.block_size = static_cast<int>(number("block_size"));
    layer.scale = nb::cast<float>(shape["scale"]), layer.softcap = nb::cast<float>(shape["softcap"]);
    layer.reach = {number("sinks"), number("window"), number("chunk"), number("sealed"), number("begin"), number("limit")};
    if (layer.reach.sealed < 0 || layer.reach.begin < 0 || layer.reach.limit < 0) {
        throw std::invalid_argument("sealed, begin and limit must not be negative");
    }
    check_shape();
    layer.k = side_of(k), layer.v = side_of(v);
    if (layer.v.channels) throw std::invalid_argument("values have scales by token, not by channel");
    layer.num_blocks = static_cast<std::int64_t>(kept.front().shape(0));
    if (select) layer.select = selection_of(*select);
    if (shape["sink_logits"].is_none()) return;
    const Bytes logits = array(shape, "sink_logits");
    if (logits.dtype() != nb::dtype<float>() || logits.ndim() != 1 || logits.shape(0) != std::size_t(layer.num_heads) ||
        logits.stride(0) != 1) {
        throw std::invalid_argument("sink_logits: float32 [" + std::to_string(layer.num_heads) + "] is needed");
    }
    layer.sink_logits = static_cast<const float*>(logits.data());
}

attention::Selection BoundLayer::selection_of(const nb::dict& fields) {
    const attention::Reach& reach = layer.reach;
    if (layer.block_size % attention::kTile || reach.window || reach.chunk || reach.sealed) {
        throw std::invalid_argument("blocks are selected in layers that read everything, in blocks of a multiple of 16 tokens");
    }
    attention::Selection select;
    select.least = nb::cast<std::int64_t>(fields["least"]), select.part = nb::cast<std::int64_t>(fields["part"]);
    if (select.least < 0 || select.part < 0) throw std::invalid_argument("least and part must not be negative");
    if (!fields["bounds"].is_none()) {
        select.bounds = plane_of("bounds", array(fields, "bounds"), std::int64_t{layer.kv_heads} * 2 * layer.k.dim, 2);
        return select;
    }
    const Bytes channels = array(fields, "channels");
    const auto fits = [&](int i) {
        const std::int32_t channel = static_cast<const std::int32_t*>(channels.data())[i];
        return channel >= 0 && channel < layer.k.dim;
    };
    bool good = channels.dtype() == nb::dtype<std::int32_t>() && channels.ndim() == 2 && channels.stride(1) == 1 &&
                channels.shape(0) == std::size_t(layer.kv_heads) && channels.stride(0) == std::int64_t(channels.shape(1));
    for (std::size_t i = 0; good && i < channels.size(); ++i) good = fits(static_cast<int>(i));
    if (!good) throw std::invalid_argument("channels: int32 [kv_heads, n], elements of keys, are needed");
    select.channels = static_cast<const std::int32_t*>(channels.data());
    select.num_channels = static_cast<int>(channels.shape(1));
    const std::int64_t elements = std::int64_t{layer.kv_heads} * select.num_channels * layer.block_size;
    select.labels = plane_of("labels", array(fields, "labels"), elements, 2);
    return select;
}

Bytes BoundLayer::array(const nb::dict& side, const char* name) {
    kept.push_back(nb::cast<Bytes>(side[name], false));
    return kept.back();
}

attention::Side BoundLayer::side_of(const nb::dict& fields) {
    attention::Side side;
    side.stored = element_named(nb::cast<std::string_view>(fields["stored"]));
    side.tiled = nb::cast<bool>(fields["tiled"]), side.dim = nb::cast<int>(fields["dim"]);
    side.turned = nb::cast<bool>(fields["turned"]), side.group = nb::cast<int>(fields["group"]);
    side.channels = nb::cast<bool>(fields["channels"]);
    side.row = nb::cast<int>(fields["row"]), side.in_tiles = nb::cast<bool>(fields["in_tiles"]);
    check_side(side);
    const std::int64_t vectors = std::int64_t{layer.kv_heads} * layer.block_size;
    const std::size_t bytes = attention::bytes_of(side.stored);
    const std::int64_t each = side.row ? side.row : side.vector_bytes() / static_cast<std::int64_t>(bytes);
    side.data = plane_of("data", array(fields, "data"), vectors * each, bytes);
    const auto numbers = [&](const char* name) {
        if (fields[name].is_none()) throw std::invalid_argument("such a side needs a plane " + std::string(name));
        const std::int64_t each = side.channels ? std::int64_t{layer.kv_heads} * side.dim : vectors * side.groups();
        return plane_of(name, array(fields, name), each, 2);
    };
    if (side.stored > Element::bfloat16) side.scale = numbers("scale");
    if (side.stored >= Element::int4) side.zero = numbers("zero");
    return side;
}

void BoundLayer::check_shape() const {
    if (layer.kv_heads < 1 || layer.num_heads < 1 || layer.num_heads % layer.kv_heads) {
        throw std::invalid_argument("num_heads: " + std::to_string(layer.num_heads) + " is no multiple of kv_heads " +
                                    std::to_string(layer.kv_heads));
    }
    if (layer.block_size < 1) throw std::invalid_argument("block_size must be positive");
}

void BoundLayer::check_side(const attention::Side& side) const {
    if (side.dim < 8 || side.dim % 8 || side.dim > attention::kMaxDim) {
        throw std::invalid_argument("dim: " + std::to_string(side.dim) + " is not a multiple of 8 up to " +
                                    std::to_string(attention::kMaxDim));
    }
    const bool unpacked = side.stored >= Element::float8;
    if ((side.tiled || unpacked) && layer.block_size % attention::kTile) {
        throw std::invalid_argument("block_size: " + std::to_string(layer.block_size) +
                                    " is no multiple of 16, as a tiled layout needs");
    }
    if (unpacked && !side.tiled) throw std::invalid_argument("such elements are read in tiles alone");
    const bool in_keys = side.stored <= Element::bfloat16 && !side.tiled && side.row >= side.dim;
    if (side.row && (!in_keys || (side.in_tiles && layer.block_size % attention::kTile))) {
        throw std::invalid_argument("values are the first elements of keys in floating-point numbers alone");
    }
    const int group = side.group ? side.group : side.dim;
    const bool fits = group > 0 && side.dim % group == 0 && side.groups() <= attention::kMaxGroups;
    if (!fits || (group < side.dim && (side.stored != Element::int4 || group % 16))) {
        throw std::invalid_argument("group: " + std::to_string(group) + " is no multiple of 16 that divides dim, of int4");
    }
    if (side.channels && (side.stored < Element::int4 || side.group || side.turned)) {
        throw std::invalid_argument("codes alone have a scale for each channel, and neither groups nor turns beside it");
    }
    if (side.stored == Element::int2 && side.dim % 16) {
        throw std::invalid_argument("dim: " + std::to_string(side.dim) + " is not a multiple of 16, as int2 needs");
    }
    if (side.turned && side.stored <= Element::bfloat16) throw std::invalid_argument("numbers are turned before they become codes");
}

BoundBatch::BoundBatch(const Numbers& query_start, const Numbers& start, const Table& block_table, const Numbers& slots)
    : table(block_table), slots(slots) {
    batch.query_start.assign(query_start.data(), query_start.data() + query_start.size());
    batch.start.assign(start.data(), start.data() + start.size());
    batch.table = table.data(), batch.table_width = static_cast<std::int64_t>(table.shape(1));
    batch.slots = slots.data();
    bool ascending = batch.query_start.size() == batch.start.size() + 1 && batch.query_start.front() == 0;
    for (std::size_t i = 0; ascending && i < batch.start.size(); ++i) {
        ascending = batch.query_start[i] <= batch.query_start[i + 1] && batch.start[i] >= 0;
    }
    if (!ascending || table.shape(0) != batch.start.size() ||
        slots.size() != static_cast<std::size_t>(batch.tokens())) {
        throw std::invalid_argument("query_start must ascend from 0 over len(start) sequences, with a row of "
                                    "block_table for each, no negative start and one slot per token");
    }
}

void BoundBatch::check_for(const attention::Layer& layer) const {
    for (const Checked& one : checked) {
        if (one.reach == layer.reach && one.num_blocks == layer.num_blocks && one.block_size == layer.block_size) return;
    }
    attention::check(layer, batch);
    checked.push_back({layer.reach, layer.num_blocks, layer.block_size});
}

void BoundKernel::store(const BoundLayer& layer, const BoundBatch& batch, const Address& k, const Address& v,
                        const std::optional<Angles>& angles) const {
    batch.check_for(layer.layer);
    const attention::Rows keys = rows_of(k), values = rows_of(v);
    const attention::Rope rope = angles ? rope_of(*angles) : attention::Rope{};
    const kvtrove::Unlocked unlocked;
    attention::store(layer.layer, batch.batch, keys, values, num_threads, angles ? &rope : nullptr);
}

void BoundKernel::rotate(const BoundLayer& layer, const BoundBatch& batch, const Address& q, const Angles& angles) const {
    const attention::Rows queries = rows_of(q);
    const attention::Rope rope = rope_of(angles);
    const kvtrove::Unlocked unlocked;
    attention::rotate(queries, batch.batch.tokens(), layer.layer.num_heads, layer.layer.k.dim, rope, num_threads);
}

void BoundKernel::attend(const BoundLayer& layer, const BoundBatch& batch, const Address& q, const Address& out,
                         std::uintptr_t lse, const std::optional<Earlier>& earlier) {
    batch.check_for(layer.layer);
    const attention::Rows queries = rows_of(q), results = rows_of(out);
    attention::Earlier merged{};
    const auto part = [&](int i) { return pointer<const float>(nb::cast<std::uintptr_t>((*earlier)[i])); };
    if (earlier) merged = {part(0), part(1)};
    const kvtrove::Unlocked unlocked;
    attention::attend(layer.layer, batch.batch, queries, results, pointer<float>(lse), scratch, num_threads, isa,
                      earlier ? &merged : nullptr);
}

void BoundKernel::run(const BoundLayer& layer, const BoundBatch& batch, const Address& q, const std::optional<Address>& k,
                      const std::optional<Address>& v, const Address& out, const std::optional<Angles>& angles) {
    batch.check_for(layer.layer);
    const attention::Rows queries = rows_of(q), results = rows_of(out);
    const attention::Rows keys = k ? rows_of(*k) : attention::Rows{}, values = v ? rows_of(*v) : attention::Rows{};
    const attention::Rope rope = angles ? rope_of(*angles) : attention::Rope{};
    const kvtrove::Unlocked unlocked;
    attention::run(layer.layer, batch.batch, {queries, keys, values, angles ? &rope : nullptr}, results, scratch, num_threads,
                   isa);
}

namespace {

void require_slots(const attention::Layer& layer, const Numbers& slots) {
    const std::int64_t end = layer.num_blocks * layer.block_size;
    for (std::size_t i = 0; i < slots.size(); ++i) {
        if (slots.data()[i] < 0 || slots.data()[i] >= end) {
            throw std::out_of_range("slot " + std::to_string(slots.data()[i]) + " does not exist; there are " + std::to_string(end));
        }
    }
}

}  // namespace

void BoundKernel::read(const BoundLayer& layer, bool keys, const Numbers& slots, std::uintptr_t to) const {
    require_slots(layer.layer, slots);
    const kvtrove::Unlocked unlocked;
    attention::read(layer.layer, keys ? layer.layer.k : layer.layer.v, slots.data(), static_cast<std::int64_t>(slots.size()),
                    pointer<float>(to), num_threads);
}

void BoundKernel::move(const BoundLayer& layer, const Numbers& from, const Numbers& to) const {
    require_slots(layer.layer, from), require_slots(layer.layer, to);
    if (from.size() != to.size() * layer.layer.kv_heads) throw std::invalid_argument("from: as many slots for each kv head as in to");
    const auto count = static_cast<std::int64_t>(to.size());
    const kvtrove::Unlocked unlocked;
    std::vector<std::uint8_t> between(attention::moving_bytes(layer.layer, count));
    attention::move(layer.layer, from.data(), to.data(), count, between.data(), num_threads);
}

void bind_attention(nb::module_& m) {
    nb::class_<BoundLayer>(m, "AttentionLayer")
        .def(nb::init<const nb::dict&, const nb::dict&, const nb::dict&, const std::optional<nb::dict>&>(), nb::arg("k"),
             nb::arg("v"), nb::arg("shape"), nb::arg("select").none());
    nb::class_<BoundBatch>(m, "AttentionBatch")
        .def(nb::init<const Numbers&, const Numbers&, const Table&, const Numbers&>(),
             nb::arg("query_start").noconvert(), nb::arg("start").noconvert(), nb::arg("block_table").noconvert(),
             nb::arg("slots").noconvert());
    nb::class_<BoundKernel>(m, "AttentionKernel")
        .def(nb::init<std::string_view, int>(), nb::arg("isa") = "auto", nb::arg("num_threads") = 0)
        .def("store", &BoundKernel::store, nb::arg("layer"), nb::arg("batch"), nb::arg("k"), nb::arg("v"),
             nb::arg("angles").none() = nb::none())
        .def("rotate", &BoundKernel::rotate, nb::arg("layer"), nb::arg("batch"), nb::arg("q"), nb::arg("angles"))
        .def("attend", &BoundKernel::attend, nb::arg("layer"), nb::arg("batch"), nb::arg("q"), nb::arg("out"),
             nb::arg("lse") = 0, nb::arg("earlier").none() = nb::none())
        .def("run", &BoundKernel::run, nb::arg("layer"), nb::arg("batch"), nb::arg("q"), nb::arg("k").none(),
             nb::arg("v").none(), nb::arg("out"), nb::arg("angles").none())
        .def("read", &BoundKernel::read, nb::arg("layer"), nb::arg("keys"), nb::arg("slots").noconvert(), nb::arg("to"))
        .def("move", &BoundKernel::move, nb::arg("layer"), nb::arg("from_slots").noconvert(), nb::arg("to").noconvert())
        .def_prop_ro("scratch_bytes", &BoundKernel::scratch_bytes);
}

}  // namespace kvtrove
