// A pool of threads that outlive their jobs. A helper that has nothing to do looks for work a while, then sleeps.
#include "common/threads.h"

#include <pthread.h>
#include <signal.h>
#include <sys/types.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(__linux__) && !defined(KVTROVE_NO_FUTEX)  // the other way is tested on Linux, too
#define KVTROVE_FUTEX
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#endif

namespace kvtrove {
namespace {

using Clock = std::chrono::steady_clock;

// How long a thread looks for work, or a caller for the end of the last parts, before it sleeps. Longer than the longest
// part of a usual step and what lies between two jobs: waking a thread takes longer than most parts. Not much longer: next
// to a process that keeps a core busy, whoever spins takes the time of whoever has work.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr unsigned kPausesPerLook = 32;  // at the clock, which takes about as long as a pause

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");  // `yield` does nothing on most processors
#endif
}

// One wait of at most kSpin.
class Spin {
  public:
    // False when the time is over.
    bool once() {
        pause();
        if (++pauses_ % kPausesPerLook) return true;
        if (pauses_ == kPausesPerLook) end_ = Clock::now() + kSpin;
        return Clock::now() < end_;
    }

  private:
    unsigned pauses_ = 0;
    Clock::time_point end_;
};

using Word = std::atomic<std::uint32_t>;

// Sleeping while a word has a value. `wake` comes after the word was changed.
#if defined(KVTROVE_FUTEX)
struct Sleepers {
    static void sleep(Word& word, std::uint32_t value) {  // may return early
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    }
    static void wake(Word& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }
};
static_assert(sizeof(Word) == sizeof(std::uint32_t));
#else
class Sleepers {
  public:
    void sleep(Word& word, std::uint32_t value) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return word.load() != value; });
    }
    void wake(Word&) {
        { const std::lock_guard<std::mutex> lock(mutex_); }  // whoever looked at the word before its change sleeps by now
        changed_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
};
#endif

// Set while this thread computes a part.
thread_local bool inside = false;

// A job is open while parts are left in its ticket: (workers, parts left). Taking a part counts the ticket down in one
// exchange. All else about a job is read after that: its caller stays until the part is done, so it is that job's.
class Pool {
  public:
    // False, and nothing done, when another caller has the pool.
    bool run(std::size_t parts, std::size_t threads, void* context, void (*run)(void*, std::size_t, std::size_t)) {
        if (owned_.exchange(true, std::memory_order_acquire)) return false;
        const std::size_t helpers = start(std::min(threads, parts) - 1);
        job_ = {parts, context, run};
        pending_.store(static_cast<std::uint32_t>(parts), std::memory_order_relaxed);
        ticket_.store(std::uint64_t{helpers + 1} << 32 | parts);
        for (std::size_t helper = 0; helper < helpers; ++helper) {
            Word& asleep = helpers_[helper].asleep;
            if (asleep.load() && asleep.exchange(0)) sleepers_.wake(asleep);
        }
        const std::uint32_t taken = take(0);
        if (pending_.fetch_sub(taken) != taken) wait();
        owned_.store(false, std::memory_order_release);
        return true;
    }

  private:
    static constexpr std::size_t kLine = 64;  // bytes of a cache line
    static constexpr std::size_t kMostHelpers = 1023;

    struct Job {
        std::size_t parts;
        void* context;
        void (*run)(void*, std::size_t, std::size_t);
    };

    struct alignas(kLine) Helper {
        Word asleep{0};
        Pool* pool;
        std::size_t worker;
    };

    // Helpers that there are, of so many wanted. Fewer where the system grants no more threads.
    std::size_t start(std::size_t wanted) {
        wanted = std::min(wanted, kMostHelpers);
        if (wanted <= started_) return wanted;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // a thread inherits it: signals are for the threads of the program
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        for (pthread_t thread; started_ < wanted; ++started_) {
            Helper& helper = helpers_[started_];
            helper.pool = this, helper.worker = started_ + 1;
            if (pthread_create(&thread, &attributes, &Pool::serve, &helper) != 0) break;
#if defined(__linux__)
            pthread_setname_np(thread, "kvtrove-helper");
#endif
        }
        pthread_attr_destroy(&attributes);
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return started_;
    }

    static void* serve(void* argument) {
        auto& helper = *static_cast<Helper*>(argument);
        Pool& pool = *helper.pool;
        inside = true;
        for (;;) {
            pool.await(helper);
            const std::uint32_t taken = pool.take(helper.worker);
            if (taken && pool.pending_.fetch_sub(taken) == taken && pool.caller_asleep_.load()) {
                pool.sleepers_.wake(pool.pending_);
            }
        }
        return nullptr;
    }

    static bool open(std::uint64_t ticket, std::size_t worker) {
        return static_cast<std::uint32_t>(ticket) != 0 && worker < ticket >> 32;
    }

    // Until a job is open to this helper.
    void await(Helper& helper) {
        Spin spin;
        while (!open(ticket_.load(std::memory_order_acquire), helper.worker)) {
            if (spin.once()) continue;
            helper.asleep.store(1);
            if (!open(ticket_.load(), helper.worker)) sleepers_.sleep(helper.asleep, 1);
            helper.asleep.store(0);
            spin = Spin();
        }
    }

    // Computes parts until none is left; returns how many.
    std::uint32_t take(std::size_t worker) {
        std::uint32_t taken = 0;
        std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (open(ticket, worker)) {
            if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
                continue;
            }
            job_.run(job_.context, job_.parts - static_cast<std::uint32_t>(ticket), worker);
            ++taken;
            ticket = ticket_.load(std::memory_order_acquire);
        }
        return taken;
    }

    // Until helpers have done the parts that they took.
    void wait() {
        Spin spin;
        while (pending_.load(std::memory_order_acquire) != 0) {
            if (spin.once()) continue;
            caller_asleep_.store(1);
            if (const std::uint32_t pending = pending_.load()) sleepers_.sleep(pending_, pending);
            caller_asleep_.store(0);
        }
    }

    std::atomic<bool> owned_{false};
    std::size_t started_ = 0;
    Job job_{};
    alignas(kLine) std::atomic<std::uint64_t> ticket_{0};
    alignas(kLine) Word pending_{0};  // parts that are not done
    Word caller_asleep_{0};
    Sleepers sleepers_;
    std::array<Helper, kMostHelpers> helpers_;
};

std::atomic<Pool*> current{nullptr};
// Threads do not follow into a child process, where the next job makes a pool of its own.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });

// The pool of this process, made at the first job. It is never destroyed: its threads run until the process ends.
Pool& pool() {
    Pool* found = current.load(std::memory_order_acquire);
    if (found) return *found;
    auto* made = new Pool;
    if (current.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *found;
}

std::atomic<std::size_t> most_threads{0};

}  // namespace

std::size_t max_threads() {
    if (inside) return 1;
    const std::size_t set = most_threads.load(std::memory_order_relaxed);
    return set ? set : std::max(1u, std::thread::hardware_concurrency());
}

void set_max_threads(std::size_t threads) { most_threads.store(threads, std::memory_order_relaxed); }

void run_parts(std::size_t parts, std::size_t threads, void* context,
               void (*run)(void* context, std::size_t part, std::size_t worker)) {
    const bool shared = !inside && threads > 1 && parts > 1 && parts <= UINT32_MAX;
    const bool outer = inside;
    inside = true;
    if (!shared || !pool().run(parts, threads, context, run)) {
        for (std::size_t part = 0; part < parts; ++part) run(context, part, 0);
    }
    inside = outer;
}

}  // namespace kvtrove
