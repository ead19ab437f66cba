// Runs pictures through an engine (`sim.benches.engine.ServedEngine`), as fast as its model goes.
//
//     engine FOLDER PICTURES LAYERS CLASSES WATCHED PATIENCE SEED
//
// FOLDER holds `words` (the Image, once), `pixels` (bytes of all pictures) and `regions` (layer,
// first word, words: what each layer leaves in the activation memory). Written into it are `answers`
// (PICTURES x CLASSES), `spans` (PICTURES x LAYERS x {start, done}) and `classes` (PICTURES), in
// cycles, and `memory`: the regions' words after each layer of the first WATCHED pictures. Pixels
// are bytes, memory is as the model holds it, all else 64-bit integers, least significant byte
// first. Nothing is judged here: `sim.check` compares.
//
// Ends with status 1 and a line on standard error if the engine refuses the Image or answers nothing
// for PATIENCE cycles, and with its parent. SEED is that of every uninitialised bit.

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "Vtop.h"
#include "Vtop___024root.h"

namespace {

using Word = std::uint64_t;

[[noreturn]] void fail(const std::string& problem) {
    std::fprintf(stderr, "%s\n", problem.c_str());
    std::exit(1);
}

template <typename T>
std::vector<T> load(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(path + " cannot be read");
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
}

void store(const std::string& path, const void* data, std::size_t size) {
    std::ofstream file(path, std::ios::binary);
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    if (!file.flush()) fail(path + " cannot be written");
}

template <typename T>
void store(const std::string& path, const std::vector<T>& values) {
    store(path, values.data(), values.size() * sizeof(T));
}

// A stream's beats, from the beginning again `rounds` times.
template <typename T>
class Source {
   public:
    Source(std::vector<T> beats, std::size_t rounds) : beats_(std::move(beats)), left_(rounds) {
        if (beats_.empty()) left_ = 0;
    }
    bool valid() const { return left_ > 0; }
    T payload() const { return valid() ? beats_[at_] : T{}; }
    void take() {
        if (++at_ == beats_.size()) {
            at_ = 0;
            --left_;
        }
    }

   private:
    std::vector<T> beats_;
    std::size_t left_, at_ = 0;
};

struct Region {
    std::size_t first, words;
};

// One cycle up to just before the edge that ends it; `clk` is high from the edge that began it.
// An engine whose lanes take two passes a cycle has a second clock, of twice the frequency, which
// rises with each edge of `clk` that does and once halfway (`hw.pump`). Inputs change at the start.
template <typename Top>
auto pass_cycle(Top& top, int) -> decltype(top.fast_clk, void()) {
    top.fast_rst = top.rst;
    top.fast_clk = 0;
    top.eval();
    top.clk = 0;
    top.fast_clk = 1;
    top.eval();
    top.fast_clk = 0;
    top.eval();
}

template <typename Top>
void pass_cycle(Top& top, long) {
    top.clk = 0;
    top.eval();
}

// The rising edge.
template <typename Top>
auto end_cycle(Top& top, int) -> decltype(top.fast_clk, void()) {
    top.clk = 1;
    top.fast_clk = 1;
    top.eval();
}

template <typename Top>
void end_cycle(Top& top, long) {
    top.clk = 1;
    top.eval();
}

}  // namespace

int main(int argc, char** argv) {
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (argc != 8) fail("engine FOLDER PICTURES LAYERS CLASSES WATCHED PATIENCE SEED");
    const std::string folder = std::string(argv[1]) + "/";
    const auto number = [&](int i) -> Word { return std::strtoull(argv[i], nullptr, 10); };
    const Word pictures = number(2), layers = number(3), classes = number(4);
    const Word watched = number(5), patience = number(6);

    Source<Word> image(load<Word>(folder + "words"), pictures);
    Source<std::uint8_t> pixels(load<std::uint8_t>(folder + "pixels"), 1);
    std::vector<std::vector<Region>> regions(layers);
    const auto places = load<Word>(folder + "regions");
    for (std::size_t i = 0; i + 2 < places.size(); i += 3)
        regions.at(places[i]).push_back({places[i + 1], places[i + 2]});

    const auto context = std::make_unique<VerilatedContext>();
    context->randReset(2);  // uninitialised bits are random: whoever reads one is found out
    context->randSeed(static_cast<int>(number(7)));
    const auto top = std::make_unique<Vtop>(context.get());
    const auto& memory = top->rootp->top__DOT__engine__DOT__memory__DOT__memory;
    const std::size_t word_size = sizeof(memory[0]);

    std::vector<Word> answers, spans, ends;
    std::vector<char> dump;
    Word started = 0, answered = 0, deadline = patience;
    top->o_answer___05Fready = 1;
    for (Word cycle = 0; ends.size() < pictures || spans.size() < 2 * pictures * layers; ++cycle) {
        top->rst = cycle < 2;
        const bool runs = !top->rst;
        top->i_image___05Fvalid = runs && image.valid();
        top->i_image___05Fpayload = image.payload();
        top->i_pixels___05Fvalid = runs && pixels.valid();
        top->i_pixels___05Fpayload = pixels.payload();
        pass_cycle(*top, 0);
        // What stands before the edge is what the edge sees.
        const bool word = top->i_image___05Fvalid && top->i_image___05Fready;
        const bool byte = top->i_pixels___05Fvalid && top->i_pixels___05Fready;
        const bool answer = runs && top->o_answer___05Fvalid;
        const bool start = runs && top->layer_start, done = runs && top->layer_done;
        if (runs && top->error) fail("the engine refused the Image");
        if (start) started = cycle;
        if (answer) {
            answers.push_back(top->o_answer___05Fpayload);
            if (++answered % classes == 0) {
                ends.push_back(cycle);
                deadline = cycle + patience;
            }
        }
        end_cycle(*top, 0);
        if (word) image.take();
        if (byte) pixels.take();
        if (done) {
            const Word layer = spans.size() / 2;
            spans.insert(spans.end(), {started, cycle});
            if (layer / layers < watched)
                for (const auto& region : regions[layer % layers])
                    for (std::size_t i = region.first; i < region.first + region.words; ++i) {
                        const auto* at = reinterpret_cast<const char*>(&memory[i]);
                        dump.insert(dump.end(), at, at + word_size);
                    }
        }
        if (cycle > deadline) fail("no class within " + std::to_string(patience) + " cycles");
    }
    top->final();
    store(folder + "answers", answers);
    store(folder + "spans", spans);
    store(folder + "classes", ends);
    store(folder + "memory", dump);
    return 0;
}
