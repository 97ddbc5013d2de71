#include "servo_loop.hpp"

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>

namespace vlar1 {
namespace {

constexpr double kRealign = 0.1;       // of a period: later than this, the schedule moves instead of catching up
constexpr double kAnswerShare = 0.6;   // of a period, by which the servos have to have answered
constexpr int kBlockEvery = 10;        // cycles between readings of load, voltage and temperature
constexpr int kTorqueEvery = 10;       // cycles between readings of Torque_Enable
constexpr int kConfirmations = 3;      // readings in a row before a temperature, a voltage or a leap counts
constexpr int64_t kFreshNs = 100'000'000;
constexpr int64_t kLookNs = 20'000'000;            // between two looks for a port that is gone
constexpr int64_t kTransactDisarmedNs = 20'000'000;
constexpr double kJumpRad = 0.5, kJumpRadS = 10.0;  // more than this since the last reading is a damaged byte
constexpr int kTorqueConfirmations = 2;
constexpr uint64_t kLateCycles = 4;   // so long an answer may still come
constexpr size_t kPaddings = 8;        // numbers of bytes that a reading may have more than it needs
constexpr int kThreads = 3;            // that take turns
constexpr int kRestCycles = 40;  // at rest without a commander, before the end
constexpr int kRealtimePriority = 50;
constexpr uint64_t kSliceNs = 100'000;

// As the system call takes it; not every C library declares it.
struct SchedAttr {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime_ns, deadline_ns, period_ns;
};

int64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int64_t to_ns(double seconds) { return static_cast<int64_t>(std::min(seconds, 1e6) * 1e9); }

void sleep_until(int64_t due_ns) {
  const timespec t{due_ns / 1000000000, due_ns % 1000000000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) == EINTR) {
  }
}

}  // namespace

ServoLoop::ServoLoop(Shared* shared, int lifeline)
    : shared_(shared),
      lifeline_(lifeline),
      config_(shared->config),
      protocol_(static_cast<Protocol>(shared->config.layout.protocol)),
      parser_(protocol_),
      n_(shared->config.joint_count),
      period_ns_(to_ns(shared->config.period_s)),
      overload_ns_(n_, 0),
      lag_ns_(n_, 0),
      unheard_(n_, 0),
      hot_(n_, 0),
      weak_(n_, 0),
      limp_(n_, 0),
      odd_(n_, 0) {
  roots_.sys = config_.sys_root;
  roots_.dev = config_.dev_root;
  std::vector<JointLimits> limits;
  for (size_t i = 0; i < n_; ++i) {
    const JointConfig& j = config_.joints[i];
    ids_.push_back(j.id);
    limits.push_back({j.lower_rad, j.upper_rad, j.velocity_rad_s, j.acceleration_rad_s2, j.jerk_rad_s3});
    now_.torque[i] = 2;
  }
  motion_ = std::make_unique<Motion>(limits, config_.period_s);
}

// Without privileges: exact timers, and a short slice, which lets the scheduler (EEVDF, Linux 6.12) run a waking thread
// sooner. For the calling thread.
void ServoLoop::ask_for_short_slice() {
  prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
  SchedAttr attr{};
  attr.size = sizeof attr;
  attr.policy = SCHED_OTHER;
  attr.nice = getpriority(PRIO_PROCESS, 0);
  attr.runtime_ns = kSliceNs;
  syscall(SYS_sched_setattr, 0, &attr, 0);
}

void ServoLoop::ask_for_realtime() {
  if (config_.realtime) {
    const sched_param priority{kRealtimePriority};
    if (sched_setscheduler(0, SCHED_FIFO, &priority) < 0) shared_->realtime_errno = errno;
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0) shared_->memory_errno = errno;
  }
  if (config_.cpu >= 0) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(static_cast<unsigned>(config_.cpu), &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) < 0) shared_->cpu_errno = errno;
  }
}

int ServoLoop::run() {
  ask_for_realtime();
  if (const int error = port_.open(config_.port, config_.baudrate)) {
    shared_->started = -error;
    return 1;
  }
  if (!config_.usb_serial[0]) {
    char resolved[PATH_MAX];
    const std::string path = config_.port;
    std::string serial = usb_serial_of(roots_, path.substr(path.rfind('/') + 1));
    if (serial.empty() && realpath(config_.port, resolved))  // a link of udev's
      serial = usb_serial_of(roots_, std::string(resolved).substr(std::string(resolved).rfind('/') + 1));
    std::strncpy(config_.usb_serial, serial.c_str(), kPathBytes - 1);
  }
  std::memcpy(now_.port, config_.port, kPathBytes);
  now_.connected = 1;

  due_ns_ = now_ns();
  shared_->started = 1;
  std::vector<std::thread> others;
  try {
    if (config_.cpu < 0)
      for (int i = 1; i < kThreads; ++i) others.emplace_back([this] { take_turns(); });
  } catch (const std::system_error&) {
    // Locked memory may hold no further stack. Fewer threads take the turns, then.
  }
  take_turns();
  for (std::thread& other : others) other.join();
  return 0;
}

// A waking thread sometimes waits for milliseconds until the scheduler runs it, above all without real-time priority.
// That seldom happens to all of several that wake for the same cycle: the first one that runs has it.
void ServoLoop::take_turns() {
  if (!config_.realtime || shared_->realtime_errno) ask_for_short_slice();
  const auto realigned = static_cast<int64_t>(kRealign * static_cast<double>(period_ns_));
  while (!quit_) {
    const int64_t due_ns = due_ns_;
    sleep_until(due_ns);
    Turn turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) {  // another one is at it
      // Where it takes longer than a cycle, come back now and then; without a pause that would keep it from ending.
      const int64_t next_ns = due_ns_, soon_ns = now_ns() + period_ns_ / 4;
      sleep_until(next_ns > due_ns ? std::max(next_ns, soon_ns) : soon_ns);
      continue;
    }
    if (due_ns_ != due_ns || quit_) continue;  // this cycle has been had
    const int64_t begin_ns = now_ns();
    due_ns_ = (begin_ns - due_ns > realigned ? begin_ns : due_ns) + period_ns_;
    if (!cycle(begin_ns, &turn)) continue;
    const bool at_rest = state_ == State::kDisarmed || (state_ != State::kMoving && motion_->settled());
    // For a moment longer, since a servo may have missed the last setpoint.
    rested_ = at_rest && commander_gone() ? rested_ + 1 : 0;
    if (rested_ > kRestCycles) quit_ = true;
  }
}

// False when the next cycle was begun by another thread while this one waited for the servos.
bool ServoLoop::cycle(int64_t begin_ns, Turn* turn) {
  if (open_cycle_) {
    close_request();
    publish(open_written_);
  }
  if (last_begin_ns_) {
    const int64_t elapsed_ns = begin_ns - last_begin_ns_;
    const auto bin = static_cast<size_t>(50.0 * static_cast<double>(elapsed_ns) / static_cast<double>(period_ns_));
    ++now_.histogram[std::min(bin, kBins - 1)];
    if (elapsed_ns >= 2 * period_ns_) now_.missed += static_cast<uint64_t>(elapsed_ns / period_ns_ - 1);
  }
  last_begin_ns_ = begin_ns;
  ++now_.cycle;
  now_.t_ns = begin_ns;
  open_cycle_ = true;
  open_written_ = false;

  watch(begin_ns);
  if (torque_expected() && port_.is_open()) {
    motion_->step();
    open_written_ = send_setpoints();
  }
  const auto answer_ns = static_cast<int64_t>(kAnswerShare * static_cast<double>(period_ns_));
  if (port_.is_open() && !exchange(begin_ns + answer_ns, turn)) return false;
  open_cycle_ = false;
  if (!port_.is_open()) look_for_port(begin_ns);
  const uint32_t command = heed_command(begin_ns);
  publish(open_written_);
  // Only now: whoever waits for the command sees its effect in the snapshot.
  shared_->command_done.store(command, std::memory_order_release);
  return true;
}

// States

void ServoLoop::enter(State state, Cause cause, int joint, int64_t at_ns) {
  state_ = state;
  cause_ = cause;
  cause_joint_ = joint;
  relax_ = cause == Cause::kContact || cause == Cause::kNotFollowing;
  if (state == State::kHolding || state == State::kStopped) {
    motion_->brake();
    shared_->hold_began_ns = at_ns;
  }
}

void ServoLoop::watch(int64_t at_ns) {
  const uint32_t stops = shared_->stop_calls.load(std::memory_order_acquire);
  if (stops != heeded_stops_) {
    heeded_stops_ = stops;
    if (torque_expected() && state_ != State::kStopped) enter(State::kStopped, Cause::kStopCalled, -1, at_ns);
  }
  if (state_ == State::kMoving) {
    const int64_t heard = shared_->heard_ns.load(std::memory_order_acquire);
    if (commander_gone() || at_ns - heard > to_ns(config_.command_timeout_s))
      enter(State::kHolding, Cause::kWatchdog, -1, at_ns);
  }
  // A servo that comes back after a reset is not where its setpoint is: it would leap there.
  if (torque_expected())
    for (size_t i = 0; i < n_; ++i)
      if (silent(i)) now_.released[i] = 1;
  const bool moving = state_ == State::kMoving, armed = state_ == State::kArmed;
  if (moving || armed) {
    // Counted in cycles: a loop that was kept waiting itself must not take that for silence.
    const int unheard = *std::min_element(unheard_.begin(), unheard_.end());
    if (!port_.is_open() || unheard * config_.period_s > config_.bus_timeout_s)
      enter(State::kHolding, Cause::kBusLost, -1, at_ns);
    else
      watch_joints(at_ns);
  }
  if (state_ == State::kMoving && motion_->settled()) enter(State::kArmed, Cause::kNone, -1, at_ns);
  if (relax_ && motion_->settled()) {
    // What was run into is no longer pressed against; the gripper keeps its grip.
    double place[kMaxJoints];
    for (size_t i = 0; i < n_; ++i)
      place[i] = config_.joints[i].may_squeeze ? motion_->setpoints()[i] : now_.position_rad[i];
    motion_->hold_at(place);
    relax_ = false;
  }
}

void ServoLoop::watch_joints(int64_t at_ns) {
  for (size_t i = 0; i < n_; ++i) {
    const int joint = static_cast<int>(i);
    if (silent(i)) return enter(State::kHolding, Cause::kServoSilent, joint, at_ns);
    if (now_.released[i]) return enter(State::kHolding, Cause::kServoReset, joint, at_ns);
    if (!parking_ && hot_[i] >= kConfirmations) return enter(State::kHolding, Cause::kTemperature, joint, at_ns);
    if (!parking_ && weak_[i] >= kConfirmations) return enter(State::kHolding, Cause::kVoltage, joint, at_ns);
    if (config_.joints[i].may_squeeze) continue;
    if (std::fabs(now_.load[i]) <= config_.contact_load) overload_ns_[i] = 0;
    else if (!overload_ns_[i]) overload_ns_[i] = at_ns;
    else if (at_ns - overload_ns_[i] > to_ns(config_.contact_time_s))
      return enter(State::kHolding, Cause::kContact, joint, at_ns);
    if (std::fabs(motion_->setpoints()[i] - now_.position_rad[i]) <= config_.tracking_rad) lag_ns_[i] = 0;
    else if (!lag_ns_[i]) lag_ns_[i] = at_ns;
    else if (at_ns - lag_ns_[i] > to_ns(config_.tracking_time_s))
      return enter(State::kHolding, Cause::kNotFollowing, joint, at_ns);
  }
}

bool ServoLoop::silent(size_t joint) const { return unheard_[joint] * config_.period_s > config_.servo_timeout_s; }

bool ServoLoop::fresh(int64_t at_ns) const {
  return port_.is_open() && std::all_of(now_.position_ns, now_.position_ns + n_, [at_ns](int64_t t) {
           return t && at_ns - t < kFreshNs;
         });
}

bool ServoLoop::commander_gone() const {
  pollfd p{lifeline_, 0, 0};
  return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL));
}

uint32_t ServoLoop::heed_command(int64_t at_ns) {
  const uint32_t number = shared_->command_number.load(std::memory_order_acquire);
  const uint32_t done = shared_->command_done.load(std::memory_order_relaxed);
  if (number == done || transaction_waits()) return done;
  shared_->reply.result = static_cast<uint32_t>(carry_out(shared_->command, at_ns));
  return number;
}

Result ServoLoop::carry_out(const Command& command, int64_t at_ns) {
  switch (static_cast<CommandKind>(command.kind)) {
    case CommandKind::kArm:
      if (state_ != State::kDisarmed) return Result::kWrongState;
      [[fallthrough]];
    case CommandKind::kResume:
      if (state_ == State::kStopped) return Result::kWrongState;
      [[fallthrough]];
    case CommandKind::kRestart:
      if (!fresh(at_ns)) return Result::kNotFresh;
      if (!motion_->settled()) return Result::kMoving;
      motion_->reset(command.position_rad);
      std::copy(command.position_rad, command.position_rad + n_, now_.setpoint_rad);
      std::fill(now_.released, now_.released + n_, 0u);
      std::fill(limp_.begin(), limp_.end(), 0);
      std::fill(overload_ns_.begin(), overload_ns_.end(), 0);
      std::fill(lag_ns_.begin(), lag_ns_.end(), 0);
      enter(State::kArmed, Cause::kNone, -1, at_ns);
      return Result::kOk;
    case CommandKind::kMove: {
      // Stopped is latched; from a hold, a new plan is the explicit word to go on, once the arm is heard again.
      if (state_ == State::kDisarmed || state_ == State::kStopped) return Result::kWrongState;
      if (std::any_of(now_.released, now_.released + n_, [](uint32_t r) { return r != 0; })) return Result::kWrongState;
      if (!fresh(at_ns)) return Result::kNotFresh;
      if (state_ == State::kHolding && !motion_->settled()) return Result::kMoving;
      const PlanSlot& slot = shared_->plans[command.slot % kPlanSlots];
      motion_->follow({slot.count, slot.times_s, slot.positions_rad, slot.velocities_rad_s}, command.elapsed_s);
      now_.plan = command.plan;
      parking_ = command.parking != 0;
      std::fill(overload_ns_.begin(), overload_ns_.end(), 0);
      std::fill(lag_ns_.begin(), lag_ns_.end(), 0);
      enter(State::kMoving, Cause::kNone, -1, at_ns);
      return Result::kOk;
    }
    case CommandKind::kHold:
      if (state_ == State::kDisarmed) return Result::kWrongState;
      if (state_ == State::kMoving || state_ == State::kArmed)
        enter(State::kHolding, Cause::kRequested, -1, at_ns);
      return Result::kOk;
    case CommandKind::kDisarm:
      if (state_ != State::kDisarmed && !motion_->settled()) return Result::kMoving;
      enter(State::kDisarmed, Cause::kNone, -1, at_ns);
      return Result::kOk;
    case CommandKind::kTransact: {
      if (state_ == State::kMoving) return Result::kMoving;
      const int64_t wait_ns = state_ == State::kDisarmed ? kTransactDisarmedNs : period_ns_ * 3 / 4;
      return transact(command, now_ns() + wait_ns);
    }
    case CommandKind::kQuit:
      if (state_ != State::kDisarmed && !motion_->settled()) return Result::kMoving;
      quit_ = true;
      return Result::kOk;
    default:
      return Result::kWrongState;
  }
}

// Bus

// Answers carry no number, only a servo's id: of two requests for as many bytes of different registers, the second has to
// wait until nothing can come for the first.
bool ServoLoop::may_ask(uint32_t address, size_t size) const {
  return std::none_of(late_.begin(), late_.end(), [&](const Late& late) {
    return late.size == size && late.address != address && late.until_cycle > now_.cycle;
  });
}

void ServoLoop::expect_late(uint32_t address, size_t size) {
  late_.erase(std::remove_if(late_.begin(), late_.end(),
                             [&](const Late& late) { return late.until_cycle <= now_.cycle || late.address == address; }),
              late_.end());
  late_.push_back({address, size, now_.cycle + kLateCycles});
}

// Whether there is a request for single servos that has to wait.
bool ServoLoop::transaction_waits() const {
  if (shared_->command_number.load(std::memory_order_acquire) == shared_->command_done.load(std::memory_order_relaxed))
    return false;
  const Command& command = shared_->command;
  if (static_cast<CommandKind>(command.kind) != CommandKind::kTransact) return false;
  if (static_cast<Operation>(command.operation) == Operation::kRead) return false;  // it tells its own answer: `own_size`
  return !may_ask(command.address, 0);
}

// How many bytes to ask for where `size` are wanted: more, another number than lately, and none that the loop itself asks
// for. Whatever comes late for another request then has another size and is dropped, however late.
size_t ServoLoop::own_size(size_t size) {
  const BusLayout& layout = config_.layout;
  size_t asked = 0;
  const auto taken = [&](size_t other) { return other == asked; };
  do {
    padding_ = padding_ % kPaddings + 1;
    asked = size + padding_;
  } while (taken(layout.position.size) || taken(layout.block.size) || taken(layout.torque.size) ||
           std::any_of(sizes_.begin(), sizes_.end(), taken));
  sizes_[size_turn_++ % sizes_.size()] = asked;
  return asked;
}

bool ServoLoop::send_setpoints() {
  const Register& goal = config_.layout.goal;
  Bytes blocks;
  const double* setpoints = motion_->setpoints();
  for (size_t i = 0; i < n_; ++i) {
    now_.setpoint_rad[i] = setpoints[i];
    if (now_.released[i]) continue;
    const JointConfig& j = config_.joints[i];
    const double a = j.zero_count + j.direction * j.lower_rad / j.rad_per_count;
    const double b = j.zero_count + j.direction * j.upper_rad / j.rad_per_count;
    double count = j.zero_count + j.direction * setpoints[i] / j.rad_per_count;
    // Rounding must not lead over a limit; a joint found outside may come back in.
    if (setpoints[i] >= j.lower_rad && setpoints[i] <= j.upper_rad)
      count = std::clamp(std::nearbyint(count), std::ceil(std::min(a, b)), std::floor(std::max(a, b)));
    uint8_t word[8];
    encode(goal, static_cast<int64_t>(std::nearbyint(count)), word);
    blocks.push_back(j.id);
    blocks.insert(blocks.end(), word, word + goal.size);
  }
  if (blocks.empty()) return false;
  const Bytes request = build_sync_write(protocol_, goal.address, goal.size, blocks);
  if (port_.write(request.data(), request.size())) return true;
  ++now_.write_failures;
  return false;
}

bool ServoLoop::exchange(int64_t deadline_ns, Turn* turn) {
  if (transaction_waits()) return true;  // the line falls quiet for it
  const bool detail = now_.cycle % kBlockEvery == 0;
  for (int& cycles : unheard_) ++cycles;
  if (!ask(detail ? config_.layout.block : config_.layout.position, deadline_ns, turn)) return false;
  if (now_.cycle % kTorqueEvery == kTorqueEvery / 2 && port_.is_open())
    return ask(config_.layout.torque, now_ns() + period_ns_ / 4, turn);
  return true;
}

// One request to all, and their answers until all have come or time is up. What has been missed is asked for again in
// the next cycle: that is the retry, and it is bounded by the timeouts of `watch`. While it waits, another thread may
// begin the next cycle; then it is false.
bool ServoLoop::ask(const Register& reg, int64_t deadline_ns, Turn* turn) {
  if (!may_ask(reg.address, reg.size)) return true;
  port_.discard_input();
  parser_.clear();
  const Bytes request = build_sync_read(protocol_, ids_, reg.address, reg.size);
  if (!port_.write(request.data(), request.size())) {
    ++now_.write_failures;
    return true;
  }
  open_request_ = true;
  open_register_ = reg;
  uint32_t missing = (1u << ids_.size()) - 1;
  uint8_t buffer[512];
  const uint64_t cycle = now_.cycle;
  for (;;) {
    const ptrdiff_t got = port_.read(buffer, sizeof buffer);
    if (got < 0) break;
    const int64_t at_ns = now_ns();
    const uint64_t damaged = parser_.damaged;
    if (got > 0) parser_.feed(buffer, static_cast<size_t>(got));
    Status status;
    while (parser_.next(&status, reg.size)) {
      const auto found = std::find(ids_.begin(), ids_.end(), status.id);
      const auto joint = static_cast<size_t>(found - ids_.begin());
      if (found == ids_.end() || !(missing >> joint & 1)) {
        ++now_.stale;
        continue;
      }
      missing &= ~(1u << joint);
      take(reg, joint, status, at_ns);
    }
    now_.damaged += parser_.damaged - damaged;
    if (!missing) open_request_ = false;
    if (!missing || at_ns >= deadline_ns) break;
    const int number = port_.number();
    turn->unlock();
    Port::wait(number, deadline_ns);
    turn->lock();
    if (now_.cycle != cycle) return false;
  }
  close_request();
  return true;
}

void ServoLoop::close_request() {
  if (!open_request_) return;
  open_request_ = false;
  ++now_.timeouts;
  expect_late(open_register_.address, open_register_.size);
}

void ServoLoop::take(const Register& reg, size_t joint, const Status& status, int64_t at_ns) {
  const BusLayout& layout = config_.layout;
  const JointConfig& j = config_.joints[joint];
  unheard_[joint] = 0;
  now_.fault[joint] = status.error;
  if (status.error) ++now_.faults;
  const uint8_t* data = status.params.data();
  if (reg.address == layout.torque.address) {
    const bool on = decode(layout.torque, data) != 0;
    now_.torque[joint] = on;
    limp_[joint] = on || !torque_expected() ? 0 : limp_[joint] + 1;
    if (limp_[joint] >= kTorqueConfirmations) now_.released[joint] = 1;
    return;
  }
  if (reg.address == layout.position.address && reg.size == layout.position.size)
    return take_position(joint, decode(layout.position, data), at_ns);
  const auto part = [&](const Register& r) {
    return static_cast<double>(decode(r, data + (r.address - layout.block.address)));
  };
  take_position(joint, static_cast<int64_t>(part(layout.position)), at_ns);
  now_.velocity_rad_s[joint] = j.direction * part(layout.velocity) * layout.velocity_unit_rad_s;
  now_.load[joint] = j.direction * part(layout.load) * layout.load_unit;
  now_.voltage_v[joint] = part(layout.voltage) * layout.voltage_unit_v;
  now_.temperature_c[joint] = part(layout.temperature);
  hot_[joint] = now_.temperature_c[joint] > config_.max_temperature_c ? hot_[joint] + 1 : 0;
  weak_[joint] = now_.voltage_v[joint] < config_.min_voltage_v ? weak_[joint] + 1 : 0;
}

void ServoLoop::take_position(size_t joint, int64_t count, int64_t at_ns) {
  const JointConfig& j = config_.joints[joint];
  const double q = (static_cast<double>(count) - j.zero_count) * j.direction * j.rad_per_count;
  const int64_t last_ns = now_.position_ns[joint];
  // Damage may get past a checksum; what no servo can do is believed when it is read three times.
  const double most = kJumpRad + kJumpRadS * static_cast<double>(at_ns - last_ns) * 1e-9;
  if (last_ns && std::fabs(q - now_.position_rad[joint]) > most && ++odd_[joint] < kConfirmations) {
    ++now_.implausible;
    return;
  }
  odd_[joint] = 0;
  now_.position_rad[joint] = q;
  now_.position_ns[joint] = at_ns;
}

void ServoLoop::look_for_port(int64_t at_ns) {
  if (now_.connected) {
    now_.connected = 0;
    ++now_.lost;
    // The servos hold the last setpoint that reached them; that is where motion would go on from.
    double last[kMaxJoints];
    std::copy(now_.setpoint_rad, now_.setpoint_rad + n_, last);
    if (torque_expected()) {
      motion_->reset(last);
      if (state_ != State::kHolding && state_ != State::kStopped) enter(State::kHolding, Cause::kBusLost, -1, at_ns);
    }
  }
  if (at_ns - look_ns_ < kLookNs || commander_gone()) return;
  look_ns_ = at_ns;
  std::string path = find_by_usb_serial(roots_, config_.usb_serial);
  if (path.empty()) {
    if (config_.usb_serial[0]) return;  // another adapter may have taken the name
    path = config_.port;
  }
  if (port_.open(path, config_.baudrate)) return;
  parser_.clear();
  now_.connected = 1;
  ++now_.reopened;
  std::memset(now_.port, 0, kPathBytes);
  std::strncpy(now_.port, path.c_str(), kPathBytes - 1);
}

Result ServoLoop::transact(const Command& command, int64_t deadline_ns) {
  Reply& reply = shared_->reply;
  reply.answered = 0;
  const auto operation = static_cast<Operation>(command.operation);
  const std::vector<uint8_t> ids(command.ids, command.ids + std::min<size_t>(command.id_count, kMaxJoints));
  const size_t size = std::min<size_t>(command.size, kTransactBytes);
  const size_t asked = operation == Operation::kRead ? own_size(size) : size;
  Bytes request;
  size_t params = 0;
  if (operation == Operation::kPing) {
    request = build(protocol_, ids[0], kPing, {});
    params = protocol_ == Protocol::kDynamixel ? 3 : 0;
  } else if (operation == Operation::kRead) {
    request = build_sync_read(protocol_, ids, command.address, static_cast<uint16_t>(asked));
    params = asked;
  } else if (operation == Operation::kWrite) {
    request = build_write(protocol_, ids[0], command.address, Bytes(command.data, command.data + size));
  } else {
    Bytes blocks;
    for (size_t i = 0; i < ids.size(); ++i) {
      blocks.push_back(ids[i]);
      const uint8_t* data = command.data + i * kTransactBytes;
      blocks.insert(blocks.end(), data, data + size);
    }
    request = build_sync_write(protocol_, command.address, static_cast<uint16_t>(size), blocks);
  }
  port_.discard_input();
  parser_.clear();
  if (!port_.write(request.data(), request.size())) {
    ++now_.write_failures;
    return Result::kNoAnswer;
  }
  if (operation == Operation::kSyncWrite) return Result::kOk;
  const uint64_t damaged = parser_.damaged;
  const uint32_t all = (1u << ids.size()) - 1;
  uint8_t buffer[512];
  Bytes heard;
  while (reply.answered != all) {
    Port::wait(port_.number(), deadline_ns);
    const ptrdiff_t got = port_.read(buffer, sizeof buffer);
    if (got <= 0) break;
    // An adapter that echoes gives back what was sent; a PING's echo looks like an answer.
    size_t skip = 0;
    if (heard.size() < request.size()) {
      heard.insert(heard.end(), buffer, buffer + got);
      const size_t compared = std::min(heard.size(), request.size());
      if (std::equal(heard.begin(), heard.begin() + static_cast<ptrdiff_t>(compared), request.begin())) {
        if (heard.size() < request.size()) continue;
        ++now_.echoed;
        skip = request.size();
      }
      parser_.feed(heard.data() + skip, heard.size() - skip);
      if (!skip) heard.assign(request.size(), 0);
    } else {
      parser_.feed(buffer, static_cast<size_t>(got));
    }
    Status status;
    while (parser_.next(&status, static_cast<int>(params))) {
      const auto found = std::find(ids.begin(), ids.end(), status.id);
      if (found == ids.end()) {
        ++now_.stale;
        continue;
      }
      const auto i = static_cast<size_t>(found - ids.begin());
      reply.answered |= 1u << i;
      reply.errors[i] = status.error;
      std::copy_n(status.params.begin(), std::min(size, status.params.size()), reply.data + i * kTransactBytes);
    }
  }
  now_.damaged += parser_.damaged - damaged;
  if (reply.answered == all) return Result::kOk;
  ++now_.timeouts;
  expect_late(command.address, params);
  return Result::kNoAnswer;
}

void ServoLoop::publish(bool written) {
  now_.state = static_cast<uint32_t>(state_);
  now_.cause = static_cast<uint32_t>(cause_);
  now_.cause_joint = cause_joint_;
  now_.settled = motion_->settled();
  now_.plan_elapsed_s = motion_->elapsed_s();
  for (size_t i = 0; i < n_; ++i) now_.ahead_rad[i] = motion_->joint(i).ahead();
  shared_->snapshot.publish(now_);
  const uint64_t next = shared_->ring_next.load(std::memory_order_relaxed);
  Sample& sample = shared_->ring[next % kRing];
  sample.t_ns = now_.t_ns;
  sample.busy_ns = now_ns() - now_.t_ns;
  sample.state = now_.state;
  sample.written = written;
  for (size_t i = 0; i < n_; ++i) {
    sample.setpoint_rad[i] = static_cast<float>(now_.setpoint_rad[i]);
    sample.position_rad[i] = static_cast<float>(now_.position_rad[i]);
  }
  shared_->ring_next.store(next + 1, std::memory_order_release);
}

}  // namespace vlar1
