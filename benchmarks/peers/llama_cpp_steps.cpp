// Steps of llama.cpp in a process that stays: gguf_beside_llama_cpp.py runs it in turn with this engine.
//
//     g++ -O2 -std=c++17 -ISRC/include -ISRC/ggml/include llama_cpp_steps.cpp build/src/libllama.a build/ggml/src/lib*.a
//         -fopenmp -ldl -o steps      # SRC is vendor/llama.cpp; of libggml, libggml-cpu, libggml-base in this order
//
//     steps MODEL.gguf THREADS       answers each line of its input with seconds
//     prompt N                       of a prompt of N tokens, of which the last one gives logits
//     decode N                       the least of N steps of one token behind the last prompt
//     steps quantise FROM TO TYPE    writes a file of another type: 2 Q4_0, 7 Q8_0, 14 Q4_K_S
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int quantise(const char* from, const char* to, const char* type) {
    auto how = llama_model_quantize_default_params();
    how.ftype = static_cast<llama_ftype>(std::atoi(type));
    how.allow_requantize = true;
    return static_cast<int>(llama_model_quantize(from, to, &how));
}

void compute(llama_context* context, std::vector<llama_token> tokens) {
    if (llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int>(tokens.size())))) {
        std::fprintf(stderr, "llama_decode failed\n");
        std::exit(1);
    }
    llama_synchronize(context);
    if (!llama_get_logits_ith(context, -1)) std::exit(1);
}

}  // namespace

int main(int count, char** words) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    if (count == 5 && std::string(words[1]) == "quantise") return quantise(words[2], words[3], words[4]);
    if (count != 3) return std::fprintf(stderr, "steps MODEL.gguf THREADS\n"), 2;
    auto* model = llama_model_load_from_file(words[1], llama_model_default_params());
    if (!model) return std::fprintf(stderr, "%s cannot be loaded\n", words[1]), 1;
    auto how = llama_context_default_params();
    how.n_ctx = 2048, how.n_batch = how.n_ubatch = 512;
    how.n_threads = how.n_threads_batch = std::atoi(words[2]);
    auto* context = llama_init_from_model(model, how);
    const int words_known = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::string kind;
    for (int tokens; std::cin >> kind >> tokens;) {
        std::vector<llama_token> prompt(kind == "prompt" ? tokens : 1);
        for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int>(100 + i * 7 % (words_known - 100));
        if (kind == "prompt") llama_memory_clear(llama_get_memory(context), true);
        double least = 1e9;
        for (int i = 0; i < (kind == "prompt" ? 1 : tokens); ++i) {
            const double begin = seconds();
            compute(context, prompt);
            least = std::min(least, seconds() - begin);
        }
        std::cout << least << std::endl;
    }
}
