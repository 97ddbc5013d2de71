// The motion of all joints: a plan of time-stamped waypoints, its clock, and what each cycle sends.
#pragma once

#include <cstddef>
#include <vector>

#include "limiter.hpp"

namespace vlar1 {

// A plan: `count` waypoints of `joints` values each, cubic between them. Whoever lends the memory keeps it until
// another plan is followed, or `brake` or `reset` is called.
struct Plan {
  size_t count = 0;
  const double* times_s = nullptr;     // (count,) increasing
  const double* positions = nullptr;   // (count, joints) rad
  const double* velocities = nullptr;  // (count, joints) rad/s
};

class Motion {
 public:
  Motion(const std::vector<JointLimits>& limits, double period_s);

  // At rest at `position` (joints,), without a plan.
  void reset(const double* position);

  // From the next step on follow `plan`, `elapsed_s` into it; where negative, that long after now. Whatever was in
  // motion goes over into it within the limits.
  void follow(const Plan& plan, double elapsed_s);

  // Forget the plan; all joints come to rest together, as soon as the slowest of them can.
  void brake();

  // At rest at another place: `position` (joints,) is gone to within the limits.
  void hold_at(const double* position);

  // One cycle on; the new setpoints (joints,).
  const double* step();

  const double* setpoints() const { return setpoints_.data(); }
  size_t joints() const { return limiters_.size(); }
  const JointLimiter& joint(size_t i) const { return limiters_[i]; }
  // Whether the plan has been run to its end and nothing moves any more.
  bool settled() const;
  double elapsed_s() const { return elapsed_s_; }

 private:
  enum class Mode { kRest, kPlan, kBrake, kTarget };
  void sample(double t, size_t joint, double* position, double* rate) const;
  void seek();
  void pace();
  double clock_rate() const;

  double period_s_;
  std::vector<JointLimiter> limiters_;
  std::vector<double> setpoints_, target_;
  Mode mode_ = Mode::kRest;
  Plan plan_;
  double elapsed_s_ = 0.0;
  double patience_ = 1.0;  // share of its pace at which the plan's clock runs
  std::vector<double> squared_rate_, rate_change_;
  size_t segment_ = 0;
};

}  // namespace vlar1
