// Vector types of W lanes; included by each level inside its namespace.
typedef float F __attribute__((vector_size(4 * W)));
typedef std::int32_t I __attribute__((vector_size(4 * W)));
typedef std::uint32_t U __attribute__((vector_size(4 * W)));
typedef std::int16_t S __attribute__((vector_size(4 * W)));
typedef std::uint16_t H __attribute__((vector_size(2 * W)));
typedef std::int8_t B __attribute__((vector_size(W)));

typedef float UnalignedF __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef std::int32_t UnalignedI __attribute__((vector_size(4 * W), aligned(1), may_alias));
typedef std::uint16_t UnalignedH __attribute__((vector_size(2 * W), aligned(2), may_alias));
