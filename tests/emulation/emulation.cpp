#include <cuda_runtime.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kSharedBytes = 227 << 10;  // of the roomiest device
constexpr std::size_t kSlotBytes = 32;
constexpr std::align_val_t kSharedAlignment{128};

struct Copy {
  void* to;
  const void* from;
  std::size_t size;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<std::byte[]> stack;
  void* fake_stack = nullptr;              // of AddressSanitizer
  const std::uint64_t* wait_on = nullptr;  // runs again once this is above `seen`
  std::uint64_t seen = 0;
  bool done = false;
  std::vector<std::vector<Copy>> copies;  // groups, the last one open
};

// Lanes of one warp that call together.
struct Meeting {
  unsigned warp;
  unsigned mask;
  unsigned arrived = 0;
  std::uint64_t number = 0;  // of meetings that have ended
  alignas(16) std::byte slots[2][32 * kSlotBytes];
};

std::vector<Thread> threads(kMaxThreads);
std::vector<std::unique_ptr<Meeting>> meetings;
struct FreeShared {
  void operator()(std::byte* memory) const { ::operator delete[](memory, kSharedAlignment); }
};
std::unique_ptr<std::byte, FreeShared> shared;
unsigned thread_count;
unsigned current;
unsigned running;
unsigned at_barrier;
std::uint64_t barriers;
void (*block_body)(void*);
void* body_context;
ucontext_t scheduler;
#if defined(__SANITIZE_ADDRESS__)
void* scheduler_fake_stack;
const void* scheduler_stack;
std::size_t scheduler_size;
#endif

void enter(unsigned next) {
  current = next;
  threadIdx.x = next;
}

// From one thread to another, or to and from the scheduler (null).
void change(Thread* from, Thread* to, bool leaves_for_good = false) {
  ucontext_t* const save = from ? &from->context : &scheduler;
#if defined(__SANITIZE_ADDRESS__)
  void** const fake = from ? &from->fake_stack : &scheduler_fake_stack;
  __sanitizer_start_switch_fiber(leaves_for_good ? nullptr : fake, to ? to->stack.get() : scheduler_stack,
                                 to ? kStackBytes : scheduler_size);
  swapcontext(save, to ? &to->context : &scheduler);
  __sanitizer_finish_switch_fiber(*fake, nullptr, nullptr);
#else
  static_cast<void>(leaves_for_good);
  swapcontext(save, to ? &to->context : &scheduler);
#endif
}

// The next thread that can go on, after this one.
Thread* next_thread() {
  for (unsigned step = 1; step <= thread_count; ++step) {
    const unsigned i = (current + step) % thread_count;
    Thread& thread = threads[i];
    if (thread.done || (thread.wait_on && *thread.wait_on <= thread.seen)) continue;
    enter(i);
    return &thread;
  }
  std::fprintf(stderr, "emulation: no thread can go on: a barrier or shuffle that not all of its threads reach\n");
  std::abort();
}

void wait_for(const std::uint64_t& counter, std::uint64_t seen) {
  Thread& own = threads[current];
  own.wait_on = &counter;
  own.seen = seen;
  while (counter <= seen) {
    Thread* const next = next_thread();
    if (next != &own) change(&own, next);
  }
  own.wait_on = nullptr;
}

void pass_barrier() {
  ++barriers;
  at_barrier = 0;
}

void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  // The first thread is entered from the scheduler, whose stack becomes known here.
  const bool first = current == 0;
  __sanitizer_finish_switch_fiber(nullptr, first ? &scheduler_stack : nullptr, first ? &scheduler_size : nullptr);
#endif
  block_body(body_context);
  Thread& own = threads[current];
  own.done = true;
  --running;
  if (running != 0 && at_barrier == running) pass_barrier();  // threads that are done take no part
  change(&own, running == 0 ? nullptr : next_thread(), true);
}

}  // namespace

bool run(const cudaLaunchConfig_t& config, void (*body)(void*), void* context) {
  const dim3 blocks = config.gridDim;
  const unsigned count = config.blockDim.x;
  if (count == 0 || count > kMaxThreads || blocks.x == 0 || blocks.y == 0 || blocks.y > 65535 || blocks.x > 0x7fffffffu ||
      config.dynamicSmemBytes > kSharedBytes) {
    return false;
  }
  block_body = body;
  body_context = context;
  gridDim = blocks;
  blockDim = dim3(count);
  thread_count = count;
  for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
      // Exactly as much as was asked for, so that AddressSanitizer sees accesses past it.
      shared.reset(static_cast<std::byte*>(::operator new[](config.dynamicSmemBytes, kSharedAlignment)));
      std::memset(shared.get(), 0xa5, config.dynamicSmemBytes);
      meetings.clear();
      running = count;
      at_barrier = 0;
      barriers = 0;
      for (unsigned i = 0; i < count; ++i) {
        Thread& thread = threads[i];
        if (!thread.stack) thread.stack.reset(new std::byte[kStackBytes]);
        thread.done = false;
        thread.wait_on = nullptr;
        thread.copies.assign(1, {});
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = kStackBytes;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, thread_main, 0);
      }
      enter(0);
      change(nullptr, &threads[0]);
    }
  }
  return true;
}

std::byte* dynamic_shared() { return shared.get(); }

void block_barrier() {
  if (++at_barrier == running) {
    pass_barrier();
  } else {
    wait_for(barriers, barriers);
  }
}

const void* exchange(unsigned mask, const void* own, std::size_t size) {
  const unsigned warp = current / 32;
  const unsigned lane = current % 32;
  if (!(mask >> lane & 1u)) {
    std::fprintf(stderr, "emulation: lane %u calls a function of lanes %08x\n", lane, mask);
    std::abort();
  }
  Meeting* meeting = nullptr;
  for (const auto& one : meetings) {
    if (one->warp == warp && one->mask == mask) meeting = one.get();
  }
  if (!meeting) {
    meetings.push_back(std::make_unique<Meeting>());
    meeting = meetings.back().get();
    meeting->warp = warp;
    meeting->mask = mask;
  }
  const std::uint64_t number = meeting->number;
  std::byte* const slots = meeting->slots[number % 2];
  std::memcpy(slots + lane * size, own, size);
  if (++meeting->arrived == static_cast<unsigned>(std::popcount(mask))) {
    meeting->arrived = 0;
    ++meeting->number;
  } else {
    wait_for(meeting->number, number);
  }
  return slots;
}

void start_copy(void* to, const void* from, std::size_t size) {
  if (reinterpret_cast<std::uintptr_t>(to) % size != 0 || reinterpret_cast<std::uintptr_t>(from) % size != 0) {
    std::fprintf(stderr, "emulation: an asynchronous copy that is not aligned\n");
    std::abort();
  }
  threads[current].copies.back().push_back({to, from, size});
}

void close_copies() { threads[current].copies.emplace_back(); }

void wait_copies(int open) {
  auto& groups = threads[current].copies;
  while (groups.size() > static_cast<std::size_t>(open) + 1) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.size);
    groups.erase(groups.begin());
  }
}

}  // namespace emulation
