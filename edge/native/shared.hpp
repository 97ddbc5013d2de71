// The memory that the servo process and the process that commands it share. One writes a field, the other reads it; no
// lock, so neither ever waits for the other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "packets.hpp"

namespace vlar1 {

constexpr uint64_t kMagic = 0x31304f5652455356;  // "VSERVO01"
constexpr size_t kMaxJoints = 16;
constexpr size_t kMaxWaypoints = 8192;
constexpr size_t kPlanSlots = 2;
constexpr size_t kRing = 8192;  // cycles kept for whoever records or measures them: 40 s at 200 Hz
constexpr size_t kBins = 101;   // of the cycle time, each 2 % of the period; the last takes the rest
constexpr size_t kPathBytes = 256;
constexpr size_t kTransactBytes = 64;

enum class State : uint32_t { kDisarmed, kArmed, kMoving, kHolding, kStopped };

// Why the arm holds or is stopped.
enum class Cause : uint32_t {
  kNone,
  kRequested,
  kStopCalled,
  kWatchdog,      // the commanding process was not heard from
  kBusLost,       // no servo answers, or the port is gone
  kServoSilent,   // one servo does not answer
  kServoReset,    // one servo has no torque any more
  kContact,       // load
  kNotFollowing,  // too far from its setpoint for too long
  kTemperature,
  kVoltage,
};

struct JointConfig {
  uint8_t id = 0;
  int8_t direction = 1;
  uint8_t may_squeeze = 0;  // a gripper: load and lag are its purpose
  double zero_count = 0.0, rad_per_count = 0.0;
  double lower_rad = 0.0, upper_rad = 0.0;
  double velocity_rad_s = 0.0, acceleration_rad_s2 = 0.0, jerk_rad_s3 = 0.0;
};

// Registers of the servos. The block is read as one piece, and the five that follow it lie within.
struct BusLayout {
  uint32_t protocol = 0;
  Register goal, torque, block;
  Register position, velocity, load, voltage, temperature;
  double velocity_unit_rad_s = 0.0, load_unit = 0.0, voltage_unit_v = 0.0;
};

struct Config {
  char port[kPathBytes] = {}, usb_serial[kPathBytes] = {}, sys_root[kPathBytes] = {}, dev_root[kPathBytes] = {};
  uint32_t baudrate = 0;
  uint32_t joint_count = 0;
  BusLayout layout;
  JointConfig joints[kMaxJoints];
  double period_s = 0.0;
  double command_timeout_s = 0.0;
  double bus_timeout_s = 0.0;    // without any answer
  double servo_timeout_s = 0.0;  // one servo without an answer
  double contact_load = 0.0, contact_time_s = 0.0;
  double tracking_rad = 0.0, tracking_time_s = 0.0;
  double max_temperature_c = 0.0, min_voltage_v = 0.0;
  uint32_t realtime = 0;  // ask for SCHED_FIFO and locked memory
  int32_t cpu = -1;       // to be bound to; -1 for none
};

// What a cycle found and sent, and counters since the start.
struct Snapshot {
  uint64_t cycle = 0;
  int64_t t_ns = 0;  // CLOCK_MONOTONIC, at the cycle's begin
  uint32_t state = 0, cause = 0;
  int32_t cause_joint = -1;
  uint32_t settled = 0;
  uint32_t plan = 0;  // number of the plan followed last
  uint32_t connected = 0;
  double plan_elapsed_s = 0.0;
  double setpoint_rad[kMaxJoints] = {};
  double ahead_rad[kMaxJoints] = {};  // where the setpoints will be a moment later, without any more motion
  double position_rad[kMaxJoints] = {};
  int64_t position_ns[kMaxJoints] = {};  // when it was read; 0: never
  double velocity_rad_s[kMaxJoints] = {};
  double load[kMaxJoints] = {};
  double voltage_v[kMaxJoints] = {};
  double temperature_c[kMaxJoints] = {};
  uint32_t torque[kMaxJoints] = {};  // 0 off, 1 on, 2 not read yet
  uint32_t fault[kMaxJoints] = {};   // error byte of the latest answer
  uint32_t released[kMaxJoints] = {};  // 1: gets no setpoints any more, since it fell silent or lost its torque
  uint64_t missed = 0;               // cycles left out because one began late
  uint64_t write_failures = 0, timeouts = 0, damaged = 0, stale = 0, echoed = 0, implausible = 0, faults = 0;
  uint64_t lost = 0, reopened = 0;  // times the port was lost, and found again
  uint64_t histogram[kBins] = {};
  char port[kPathBytes] = {};  // as it is now
};

// One cycle in the ring.
struct Sample {
  int64_t t_ns = 0;
  int64_t busy_ns = 0;  // from the cycle's begin to the last answer
  float setpoint_rad[kMaxJoints] = {}, position_rad[kMaxJoints] = {};
  uint32_t state = 0, written = 0;
};

struct PlanSlot {
  uint64_t count = 0;
  double times_s[kMaxWaypoints];
  double positions_rad[kMaxWaypoints * kMaxJoints];     // (count, joint_count)
  double velocities_rad_s[kMaxWaypoints * kMaxJoints];  // (count, joint_count)
};

// kRestart lifts a stop, at a person's word; kResume goes on from a hold alone.
enum class CommandKind : uint32_t { kArm, kMove, kHold, kRestart, kDisarm, kTransact, kQuit, kResume };
enum class Result : uint32_t { kOk, kWrongState, kNotFresh, kMoving, kNoAnswer };
enum class Operation : uint32_t { kPing, kRead, kWrite, kSyncWrite };

struct Command {
  uint32_t kind = 0;
  uint32_t slot = 0, plan = 0, parking = 0;
  double elapsed_s = 0.0;
  double position_rad[kMaxJoints] = {};  // of kArm, kRestart, kResume: the goals that the servos hold
  // kTransact: one register of servos `ids`; `data` holds kTransactBytes a servo, of which `size` count.
  uint32_t operation = 0, id_count = 0;
  uint8_t ids[kMaxJoints] = {};
  uint16_t address = 0, size = 0;
  uint8_t data[kMaxJoints * kTransactBytes] = {};
};

struct Reply {
  uint32_t result = 0;
  uint32_t answered = 0;  // bit i: ids[i] answered
  uint32_t errors[kMaxJoints] = {};
  uint8_t data[kMaxJoints * kTransactBytes] = {};
};

// A value that one process publishes and others read whole. It is written beside the last one, so a writer that is kept
// waiting half-way keeps no reader waiting; a reader tries again when it was overtaken twice while it read.
template <typename T>
class Published {
 public:
  void publish(const T& value) {
    const auto* words = reinterpret_cast<const uint64_t*>(&value);
    const uint64_t next = latest_.load(std::memory_order_relaxed) + 1;
    Copy& copy = copies_[next & 1];
    copy.number.store(0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    for (size_t i = 0; i < kWords; ++i) copy.words[i].store(words[i], std::memory_order_relaxed);
    copy.number.store(next, std::memory_order_release);
    latest_.store(next, std::memory_order_release);
  }
  bool read(T* value) const {
    auto* words = reinterpret_cast<uint64_t*>(value);
    for (int attempt = 0; attempt < 1000; ++attempt) {
      const uint64_t latest = latest_.load(std::memory_order_acquire);
      const Copy& copy = copies_[latest & 1];
      if (copy.number.load(std::memory_order_acquire) != latest) continue;
      for (size_t i = 0; i < kWords; ++i) words[i] = copy.words[i].load(std::memory_order_relaxed);
      std::atomic_thread_fence(std::memory_order_acquire);
      if (copy.number.load(std::memory_order_relaxed) == latest) return true;
    }
    return false;
  }

 private:
  static_assert(sizeof(T) % sizeof(uint64_t) == 0, "published values are copied in words");
  static constexpr size_t kWords = sizeof(T) / sizeof(uint64_t);
  struct Copy {
    std::atomic<uint64_t> number{0};
    std::atomic<uint64_t> words[kWords]{};
  };
  std::atomic<uint64_t> latest_{0};
  Copy copies_[2];
};

struct Shared {
  uint64_t magic = kMagic;
  uint64_t size = sizeof(Shared);
  Config config;  // written before the servo process starts

  std::atomic<int64_t> heard_ns{0};     // the commander's last sign of life
  std::atomic<uint32_t> stop_calls{0};  // raised by any thread that wants the arm to stop

  Command command;  // valid once command_number is raised, until command_done equals it
  Reply reply;
  std::atomic<uint32_t> command_number{0}, command_done{0};
  PlanSlot plans[kPlanSlots];

  std::atomic<int32_t> started{0};  // 1: running; below 0: the errno of opening the port, negated
  std::atomic<int32_t> realtime_errno{0}, memory_errno{0}, cpu_errno{0};
  std::atomic<int64_t> hold_began_ns{0};  // the first cycle of the latest hold or stop
  Published<Snapshot> snapshot;
  std::atomic<uint64_t> ring_next{0};
  Sample ring[kRing];
};

static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free,
              "processes share these without a lock");

}  // namespace vlar1
