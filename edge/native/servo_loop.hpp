// The servo loop: owns the bus, sends setpoints at a fixed rate, and is the state machine that keeps the arm safe.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "motion.hpp"
#include "packets.hpp"
#include "port.hpp"
#include "shared.hpp"

namespace vlar1 {

class ServoLoop {
 public:
  // `lifeline`: a descriptor that hangs up when the commanding process is gone.
  ServoLoop(Shared* shared, int lifeline);

  // Runs until told to quit, or until the commander is gone and the arm has come to rest. The exit code.
  int run();

 private:
  using Turn = std::unique_lock<std::mutex>;

  void ask_for_realtime();
  static void ask_for_short_slice();
  void take_turns();
  void look_for_port(int64_t now_ns);
  bool cycle(int64_t now_ns, Turn* turn);
  uint32_t heed_command(int64_t now_ns);  // the number of the last command that was carried out
  Result carry_out(const Command& command, int64_t now_ns);
  void watch(int64_t now_ns);
  void watch_joints(int64_t now_ns);
  void enter(State state, Cause cause, int joint, int64_t now_ns);
  bool send_setpoints();
  bool exchange(int64_t deadline_ns, Turn* turn);
  bool ask(const Register& reg, int64_t deadline_ns, Turn* turn);
  void close_request();
  bool may_ask(uint32_t address, size_t size) const;
  bool transaction_waits() const;
  void expect_late(uint32_t address, size_t size);
  void take(const Register& reg, size_t joint, const Status& status, int64_t now_ns);
  void take_position(size_t joint, int64_t count, int64_t now_ns);
  size_t own_size(size_t size);
  Result transact(const Command& command, int64_t deadline_ns);
  void publish(bool written);
  bool fresh(int64_t now_ns) const;
  bool silent(size_t joint) const;
  bool commander_gone() const;
  bool torque_expected() const { return state_ != State::kDisarmed; }

  Shared* shared_;
  int lifeline_;
  Config config_;
  Protocol protocol_;
  PortRoots roots_;
  Port port_;
  Parser parser_;
  std::unique_ptr<Motion> motion_;
  size_t n_;
  std::vector<uint8_t> ids_;
  int64_t period_ns_;

  State state_ = State::kDisarmed;
  Cause cause_ = Cause::kNone;
  int cause_joint_ = -1;
  bool parking_ = false;  // the way to rest is gone also when a servo is hot or short of voltage
  bool relax_ = false;  // once at rest, give way to where the arm is
  Snapshot now_;
  int64_t last_begin_ns_ = 0, look_ns_ = 0;
  uint32_t heeded_stops_ = 0;
  std::vector<int64_t> overload_ns_, lag_ns_;
  std::vector<int> unheard_;  // cycles since a servo's last answer
  std::vector<int> hot_, weak_, limp_, odd_;
  // Requests that not all have answered: what comes late could be taken for the answer to another one.
  struct Late {
    uint32_t address;
    size_t size;
    uint64_t until_cycle;
  };
  std::vector<Late> late_;
  // Of the readings of single servos: the latest numbers of bytes asked for.
  std::array<size_t, 3> sizes_{};
  size_t size_turn_ = 0, padding_ = 0;
  int rested_ = 0;

  // Of the threads that take turns: whoever holds `turn_` has all of the above.
  std::mutex turn_;
  std::atomic<int64_t> due_ns_{0};
  std::atomic<bool> quit_{false};
  bool open_cycle_ = false;     // begun and not finished
  bool open_written_ = false;
  bool open_request_ = false;   // sent, and not everything has answered
  Register open_register_;
};

}  // namespace vlar1
