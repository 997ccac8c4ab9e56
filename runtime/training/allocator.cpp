// Where the results of operators land: an allocator in front of torch's CPU allocator.
//
// While a planned operator runs on a thread, that thread's allocations go
//   - to the address that the plan has for them, where their size and their turn among those of that size say which
//     result they are (a slot),
//   - else, if they are large, to the workspace of the region, by best fit,
//   - else, and whenever no planned operator runs, to the allocator that was there before.
// A block is given back by its address alone, so any thread may do so, and oneDNN's raw interface works: it asks that
// context and data are the same pointer and that one deleter fits all blocks.
//
// One mutex guards every region. It is never held while the previous allocator or Python run, and it is taken around
// a fork, so a child finds everything in order.

#include <c10/core/CPUAllocator.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

constexpr int kRegions = 256;
enum Place : int64_t { kOrdinary = 0, kPlanned = 1, kWorkspace = 2, kOverflow = 3 };

// `address` 0 leaves the allocation to the previous allocator.
struct Slot {
  int64_t nbytes;
  uintptr_t address;
  int64_t skip;
};

struct Allocation {
  int64_t nbytes;
  uintptr_t address;
  int64_t place;
};

// A range is read without the mutex only to see quickly that a block is not in it.
struct Range {
  std::atomic<uintptr_t> begin{0};
  std::atomic<size_t> nbytes{0};

  bool holds(uintptr_t address) const {
    return address - begin.load(std::memory_order_acquire) < nbytes.load(std::memory_order_acquire);
  }
  void set(uintptr_t from, size_t size) {
    nbytes.store(0, std::memory_order_release);
    begin.store(from, std::memory_order_release);
    nbytes.store(size, std::memory_order_release);
  }
};

struct Region {
  Range planned;
  Range workspace;
  size_t alignment = 64;
  size_t smallest = 0;
  bool open = false;
  int64_t entered = 0;  // threads inside one of its scripts
  std::map<uintptr_t, size_t> free_at;
  std::set<std::pair<size_t, uintptr_t>> free_of;  // the same blocks by size
  std::unordered_map<uintptr_t, size_t> used;
  int64_t planned_live = 0, hits = 0, misses = 0;
  int64_t workspace_nbytes = 0, workspace_peak = 0;
  int64_t overflow_nbytes = 0, overflow_peak = 0, overflows = 0;

  bool live() const {
    return planned_live > 0 || !used.empty();
  }
};

struct Script {
  int region;
  std::vector<int64_t> starts;  // slots of operator t: [starts[t], starts[t + 1])
  std::vector<Slot> slots;
};

// What one thread is at.
struct Thread {
  std::vector<Script*> outer;    // those entered before `script`
  Script* script = nullptr;
  bool running = false;
  bool logging = false;
  size_t first = 0, count = 0;   // the slots of the operator that runs
  size_t open = 0;               // those not taken yet
  std::vector<int64_t> left;     // allocations of its size that a slot lets pass; -1 once it is taken
  std::vector<int64_t> missed;   // slots of the operator that ended last
  std::vector<Allocation> log;
};

// On the heap and never destroyed: at the end of a process, tensors may be freed after this library's destructors.
std::mutex& mutex = *new std::mutex();
Region* const regions = new Region[kRegions];
auto& overflow_blocks = *new std::unordered_map<uintptr_t, std::pair<int, size_t>>();  // region and bytes of each
std::atomic<int> region_count{0};
std::atomic<int64_t> overflow_count{0};
c10::Allocator* previous = nullptr;
thread_local Thread* self = nullptr;

// Ends with its thread, and what the thread was inside of with it.
struct OwnThread {
  std::unique_ptr<Thread> thread;

  ~OwnThread() {
    self = nullptr;
    if (thread == nullptr || thread->script == nullptr) {
      return;
    }
    std::lock_guard<std::mutex> guard(mutex);
    --regions[thread->script->region].entered;
    for (const Script* script : thread->outer) {
      if (script != nullptr) {
        --regions[script->region].entered;
      }
    }
  }
};
thread_local OwnThread own;

void insert_free(Region& region, uintptr_t address, size_t nbytes) {
  region.free_at.emplace(address, nbytes);
  region.free_of.emplace(nbytes, address);
}

void erase_free(Region& region, std::map<uintptr_t, size_t>::iterator block) {
  region.free_of.erase({block->second, block->first});
  region.free_at.erase(block);
}

// The smallest free block that is large enough, the lowest of equals; 0 where there is none.
uintptr_t take_workspace(Region& region, size_t wanted) {
  const size_t nbytes = (wanted + region.alignment - 1) / region.alignment * region.alignment;
  auto found = region.free_of.lower_bound({nbytes, 0});
  if (nbytes < wanted || found == region.free_of.end()) {
    return 0;
  }
  const auto [size, address] = *found;
  erase_free(region, region.free_at.find(address));
  if (size > nbytes) {
    insert_free(region, address + nbytes, size - nbytes);
  }
  region.used.emplace(address, nbytes);
  region.workspace_nbytes += nbytes;
  region.workspace_peak = std::max(region.workspace_peak, region.workspace_nbytes);
  return address;
}

void give_workspace(Region& region, uintptr_t address) {
  auto block = region.used.find(address);
  if (block == region.used.end()) {
    return;
  }
  size_t nbytes = block->second;
  region.used.erase(block);
  region.workspace_nbytes -= nbytes;
  auto after = region.free_at.lower_bound(address);
  if (after != region.free_at.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == address) {
      address = before->first;
      nbytes += before->second;
      erase_free(region, before);
    }
  }
  if (after != region.free_at.end() && address + nbytes == after->first) {
    nbytes += after->second;
    erase_free(region, after);
  }
  insert_free(region, address, nbytes);
}

// Whether the block was one of a region's.
bool give_to_region(uintptr_t address) {
  const int count = region_count.load(std::memory_order_acquire);
  for (int i = 0; i < count; ++i) {
    Region& region = regions[i];
    if (!region.planned.holds(address) && !region.workspace.holds(address)) {
      continue;
    }
    std::lock_guard<std::mutex> guard(mutex);
    if (region.planned.holds(address)) {
      --region.planned_live;
      return true;
    }
    if (region.workspace.holds(address)) {
      give_workspace(region, address);
      return true;
    }
  }
  return false;
}

void release(void* pointer) {
  if (pointer == nullptr) {
    return;
  }
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (give_to_region(address)) {
    return;
  }
  if (overflow_count.load(std::memory_order_acquire) > 0) {
    std::lock_guard<std::mutex> guard(mutex);
    auto block = overflow_blocks.find(address);
    if (block != overflow_blocks.end()) {
      regions[block->second.first].overflow_nbytes -= block->second.second;
      overflow_blocks.erase(block);
      overflow_count.fetch_sub(1, std::memory_order_release);
    }
  }
  previous->raw_deleter()(pointer);
}

c10::DataPtr owned(uintptr_t address) {
  void* pointer = reinterpret_cast<void*>(address);
  return {pointer, pointer, &release, c10::Device(c10::DeviceType::CPU)};
}

c10::DataPtr ordinary(size_t nbytes) {
  c10::DataPtr block = previous->allocate(nbytes);
  return owned(reinterpret_cast<uintptr_t>(block.release_context()));
}

// The slot that this allocation takes, or null. All other slots of its size let it pass.
const Slot* take_slot(Thread& thread, int64_t nbytes) {
  const Slot* taken = nullptr;
  const Slot* slots = thread.script->slots.data() + thread.first;
  for (size_t i = 0; i < thread.count && thread.open > 0; ++i) {
    if (slots[i].nbytes != nbytes || thread.left[i] < 0) {
      continue;
    }
    if (thread.left[i] > 0) {
      --thread.left[i];
    } else if (taken == nullptr) {
      taken = &slots[i];
      thread.left[i] = -1;
      --thread.open;
    }
  }
  return taken;
}

c10::DataPtr overflow(Region& region, size_t nbytes) {
  c10::DataPtr block = ordinary(nbytes);
  std::lock_guard<std::mutex> guard(mutex);
  overflow_blocks[reinterpret_cast<uintptr_t>(block.get())] = {static_cast<int>(&region - regions), nbytes};
  overflow_count.fetch_add(1, std::memory_order_release);
  ++region.overflows;
  region.overflow_nbytes += nbytes;
  region.overflow_peak = std::max(region.overflow_peak, region.overflow_nbytes);
  return block;
}

c10::DataPtr inside(Thread& thread, size_t nbytes, Place& place) {
  Region& region = regions[thread.script->region];
  const Slot* slot = thread.open > 0 ? take_slot(thread, static_cast<int64_t>(nbytes)) : nullptr;
  if (slot != nullptr && slot->address != 0) {
    place = kPlanned;
    std::lock_guard<std::mutex> guard(mutex);
    ++region.planned_live;
    ++region.hits;
    return owned(slot->address);
  }
  if (slot != nullptr || nbytes < region.smallest) {
    place = kOrdinary;
    return ordinary(nbytes);
  }
  uintptr_t address = 0;
  {
    std::lock_guard<std::mutex> guard(mutex);
    address = take_workspace(region, nbytes);
  }
  place = address != 0 ? kWorkspace : kOverflow;
  return address != 0 ? owned(address) : overflow(region, nbytes);
}

struct PlacingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t nbytes) override {
    Thread* thread = self;
    if (thread == nullptr || !thread->running || nbytes == 0) {
      return ordinary(nbytes);
    }
    Place place = kOrdinary;
    c10::DataPtr block = inside(*thread, nbytes, place);
    if (thread->logging) {
      thread->log.push_back({static_cast<int64_t>(nbytes), reinterpret_cast<uintptr_t>(block.get()), place});
    }
    return block;
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }
  void copy_data(void* target, const void* source, std::size_t nbytes) const override {
    default_copy_data(target, source, nbytes);
  }
};

PlacingAllocator* placing = nullptr;  // never destroyed: storages keep a pointer to it

// Ends the operator that runs; the number of its slots that no allocation took.
int64_t finish(Thread& thread) {
  thread.missed.clear();
  if (!thread.running) {
    return 0;
  }
  thread.running = false;
  if (thread.open == 0) {
    return 0;
  }
  for (size_t i = 0; i < thread.count; ++i) {
    if (thread.left[i] >= 0) {
      thread.missed.push_back(static_cast<int64_t>(i));
    }
  }
  std::lock_guard<std::mutex> guard(mutex);
  regions[thread.script->region].misses += static_cast<int64_t>(thread.missed.size());
  return static_cast<int64_t>(thread.missed.size());
}

// Without blocks and threads inside, a closed region's place in the table is free for another. Under the mutex.
bool reap(Region& region) {
  if (region.live() || region.entered > 0) {
    return false;
  }
  region.planned.set(0, 0);
  region.workspace.set(0, 0);
  region.free_at.clear();
  region.free_of.clear();
  region.used.clear();
  region.open = false;
  return true;
}

}  // namespace

extern "C" {

// 0: in place. 1: the allocator in place has no raw deleter. 2: another was put over ours. 3: torch did not take it.
int stow_install() {
  std::lock_guard<std::mutex> guard(mutex);
  c10::Allocator* current = c10::GetCPUAllocator();
  if (placing != nullptr && current == placing) {
    return 0;
  }
  if (placing == nullptr) {
    if (current->raw_deleter() == nullptr) {
      return 1;
    }
    previous = current;
    placing = new PlacingAllocator();
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
  } else if (current != previous) {
    return 2;
  }
  c10::SetCPUAllocator(placing);
  return c10::GetCPUAllocator() == placing ? 0 : 3;
}

// 0: the previous allocator is back. 1: blocks of a region are in use or a script is entered. 2: another is over ours.
int stow_uninstall() {
  std::lock_guard<std::mutex> guard(mutex);
  if (placing == nullptr || c10::GetCPUAllocator() == previous) {
    return 0;
  }
  for (int i = 0; i < kRegions; ++i) {
    if (regions[i].live() || regions[i].entered > 0) {
      return 1;
    }
  }
  if (c10::GetCPUAllocator() != placing) {
    return 2;
  }
  c10::SetCPUAllocator(previous);
  return 0;
}

// A new region, or -1 where the table is full. The workspace may be of 0 bytes.
int stow_open(uintptr_t begin, size_t nbytes, uintptr_t workspace, size_t workspace_nbytes, size_t alignment,
              size_t smallest) {
  std::lock_guard<std::mutex> guard(mutex);
  int index = 0;
  while (index < kRegions && regions[index].open) {
    ++index;
  }
  if (index == kRegions) {
    return -1;
  }
  Region& region = regions[index];
  region.alignment = alignment;
  region.smallest = smallest;
  region.open = true;
  region.planned_live = region.hits = region.misses = 0;
  region.workspace_nbytes = region.workspace_peak = 0;
  region.overflow_nbytes = region.overflow_peak = region.overflows = 0;
  const uintptr_t first = (workspace + alignment - 1) / alignment * alignment;
  const uintptr_t last = (workspace + workspace_nbytes) / alignment * alignment;
  if (first < last) {
    insert_free(region, first, last - first);
  }
  for (auto block = overflow_blocks.begin(); block != overflow_blocks.end();) {  // of who had this place before
    const bool old = block->second.first == index;
    overflow_count.fetch_sub(old ? 1 : 0, std::memory_order_release);
    block = old ? overflow_blocks.erase(block) : std::next(block);
  }
  region.planned.set(begin, nbytes);
  region.workspace.set(workspace, workspace_nbytes);
  if (index >= region_count.load(std::memory_order_relaxed)) {
    region_count.store(index + 1, std::memory_order_release);
  }
  return index;
}

// Whether the region is gone: not while blocks of it are in use or a thread is inside a script of it.
int stow_close(int index) {
  std::lock_guard<std::mutex> guard(mutex);
  return reap(regions[index]) ? 1 : 0;
}

void stow_stats(int index, int64_t* out) {
  std::lock_guard<std::mutex> guard(mutex);
  const Region& region = regions[index];
  const int64_t values[] = {region.hits,           region.misses,          region.planned_live,
                            region.workspace_nbytes, region.workspace_peak, static_cast<int64_t>(region.used.size()),
                            region.overflow_nbytes, region.overflow_peak,  region.overflows};
  std::copy(std::begin(values), std::end(values), out);
}

void stow_reset_peaks(int index) {
  std::lock_guard<std::mutex> guard(mutex);
  Region& region = regions[index];
  region.hits = region.misses = region.overflows = 0;
  region.workspace_peak = region.workspace_nbytes;
  region.overflow_peak = region.overflow_nbytes;
}

void* stow_script(int region, const int64_t* starts, int64_t operators, const Slot* slots) {
  auto* script = new Script{region, {starts, starts + operators + 1}, {slots, slots + starts[operators]}};
  return script;
}

void stow_script_free(Script* script) {
  delete script;
}

void stow_amend(Script* script, int64_t at, int64_t slot, int64_t skip) {
  script->slots[static_cast<size_t>(script->starts[at] + slot)].skip = skip;
}

// From now on `stow_at` of this thread speaks of the operators of `script`.
void stow_enter(Script* script) {
  if (self == nullptr) {
    own.thread = std::make_unique<Thread>();
    self = own.thread.get();
  }
  finish(*self);
  self->outer.push_back(self->script);
  self->script = script;
  std::lock_guard<std::mutex> guard(mutex);
  ++regions[script->region].entered;
}

// Back to the script that was entered before.
void stow_leave() {
  if (self == nullptr || self->script == nullptr) {
    return;
  }
  finish(*self);
  const int region = self->script->region;
  self->script = self->outer.back();
  self->outer.pop_back();
  std::lock_guard<std::mutex> guard(mutex);
  --regions[region].entered;
}

// Ends the operator before, as `stow_done` does, and begins operator `at`. -1: no script is entered, or no such `at`.
int stow_at(int at) {
  Thread* thread = self;
  if (thread == nullptr || thread->script == nullptr) {
    return -1;
  }
  const int64_t missed = finish(*thread);
  const Script& script = *thread->script;
  if (at < 0 || static_cast<size_t>(at) + 1 >= script.starts.size()) {
    return -1;
  }
  thread->first = static_cast<size_t>(script.starts[at]);
  thread->count = static_cast<size_t>(script.starts[at + 1]) - thread->first;
  thread->open = thread->count;
  if (thread->left.size() < thread->count) {
    thread->left.resize(thread->count);
  }
  for (size_t i = 0; i < thread->count; ++i) {
    thread->left[i] = script.slots[thread->first + i].skip;
  }
  thread->log.clear();
  thread->running = true;
  return static_cast<int>(missed);
}

int stow_done() {
  return self == nullptr ? -1 : static_cast<int>(finish(*self));
}

int64_t stow_missed(int64_t* out, int64_t room) {
  if (self == nullptr) {
    return 0;
  }
  for (int64_t i = 0; i < room && i < static_cast<int64_t>(self->missed.size()); ++i) {
    out[i] = self->missed[static_cast<size_t>(i)];
  }
  return static_cast<int64_t>(self->missed.size());
}

void stow_logging(int on) {
  if (self != nullptr) {
    self->logging = on != 0;
  }
}

// Allocations of the operator that runs or ended last, in their order.
int64_t stow_log(Allocation* out, int64_t room) {
  if (self == nullptr) {
    return 0;
  }
  for (int64_t i = 0; i < room && i < static_cast<int64_t>(self->log.size()); ++i) {
    out[i] = self->log[static_cast<size_t>(i)];
  }
  return static_cast<int64_t>(self->log.size());
}

}  // extern "C"
