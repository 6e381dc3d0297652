// Runs independent tasks on threads that belong to somebody else.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>

namespace iiae {

// Runs body(data) on up to `threads` threads at once and waits for them. OpenMP's own entry point fits, so that the engine
// computes on the threads that PyTorch has: others would fight with those for the cores, since OpenMP's wait by spinning.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

struct Team {
  Parallel parallel = nullptr;  // none: this thread alone
  unsigned threads = 1;
};

// Calls work(i) for every i below `count` on the team's threads. The first exception stops the rest and is thrown here.
template <class Work>
void run(const Team& team, std::size_t count, const Work& work) {
  struct Task {
    const Work& work;
    std::size_t count;
    std::atomic<std::size_t> next{0};
    std::mutex mutex{};
    std::exception_ptr error{};
  } task{work, count};
  const auto body = [](void* data) {
    auto& task = *static_cast<Task*>(data);
    for (std::size_t i = task.next++; i < task.count; i = task.next++) {
      try {
        task.work(i);
      } catch (...) {  // none may leave a thread that is not ours
        const std::lock_guard lock(task.mutex);
        if (!task.error) task.error = std::current_exception();
        task.next = task.count;
      }
    }
  };
  const auto threads = static_cast<unsigned>(std::min<std::size_t>(team.threads, count));
  if (team.parallel && threads > 1) {
    team.parallel(body, &task, threads, 0);
  } else {
    body(&task);
  }
  if (task.error) std::rethrow_exception(task.error);
}

}  // namespace iiae
