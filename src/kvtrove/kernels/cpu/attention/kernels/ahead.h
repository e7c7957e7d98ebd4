// Memory that is asked for before it is read. Included by each level inside its namespace, after vector.h.
//
// Blocks lie anywhere, so no prefetcher of the hardware guesses what comes next, and while scores become weights nobody
// reads: left to itself, memory is idle for a quarter of the time. So every stage of a chunk asks for a share of the next
// chunk's lines, into the second level of the caches. All at once would fill the queue of what is under way.

constexpr int kLine = 64;          // bytes that are fetched at once
constexpr std::int64_t kScoreBytes = 10;  // bytes of K or V that are multiplied while one score becomes a weight, about

class Ahead {
public:
    // Forgets what is left. work: bytes of the shares that the coming stages will ask for in all.
    void begin(std::int64_t work) { runs_ = now_ = 0, left_ = lines_ = due_ = 0, work_ = std::max<std::int64_t>(work, 1); }

    // Lines that the one before them brings as well are left out.
    void add(const std::uint8_t* from, std::int64_t bytes) {
        const auto line = [](const std::uint8_t* p) { return reinterpret_cast<std::uintptr_t>(p) / kLine; };
        std::uintptr_t first = line(from);
        const std::uintptr_t last = line(from + bytes - 1);
        if (runs_ > 0 && first >= run_[runs_ - 1].first && first <= run_[runs_ - 1].end) {
            first = run_[runs_ - 1].end;
            run_[runs_ - 1].end = std::max(first, last + 1);
        } else {
            run_[runs_++] = {first, last + 1};
        }
        lines_ += std::max<std::int64_t>(0, static_cast<std::int64_t>(last + 1 - first));
    }

    void end() {
        per_byte_ = (lines_ << kShift) / work_ + 1;
        if (runs_ > 0) enter();
        else per_byte_ = 0;
    }

    // As many lines as fall to a piece of work of so many bytes.
    INLINE void ask(std::int64_t bytes) {
        due_ += bytes * per_byte_;
        if (due_ >> kShift) fetch_apart();
    }

    // The same where sums are in registers, which a call would have to save.
    INLINE void ask_in_place(std::int64_t bytes) {
        due_ += bytes * per_byte_;
        fetch();
    }

private:
    static constexpr int kShift = 20;
    struct Lines {
        std::uintptr_t first, end;
    };

    INLINE void enter() {
        at_ = reinterpret_cast<const std::uint8_t*>(run_[now_].first * kLine);
        left_ = static_cast<std::int64_t>(run_[now_].end - run_[now_].first);
    }

    [[gnu::noinline]] void fetch_apart() { fetch(); }

    INLINE void fetch() {
        std::int64_t lines = due_ >> kShift;
        due_ &= (std::int64_t{1} << kShift) - 1;
        while (lines > 0 && left_ > 0) {
            const std::int64_t some = std::min(lines, left_);
            for (std::int64_t i = 0; i < some; ++i) __builtin_prefetch(at_ + i * kLine, 0, 2);
            lines -= some, left_ -= some, at_ += some * kLine;
            if (left_ == 0 && ++now_ < runs_) enter();
        }
    }

    Lines run_[6 * (kChunk / kTile)];
    int runs_ = 0, now_ = 0;
    const std::uint8_t* at_ = nullptr;
    std::int64_t left_ = 0, lines_ = 0, work_ = 1, per_byte_ = 0, due_ = 0;
};
