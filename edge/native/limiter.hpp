// One joint's setpoints, kept within limits of position, velocity, acceleration and jerk whatever is asked for.
//
// Two stages. The first moves towards the target as fast as velocity, acceleration and its braking distance to the
// position limits allow; all three then hold exactly, step by step, by induction: a velocity is only taken from which
// the joint can still stop before the limit. The second is a mean over the last N of its positions. A mean of values
// within bounds is within the same bounds, so position, velocity and acceleration still hold; and the acceleration of
// a mean changes by (a[k] - a[k-N]) / N a step, at most 2 A / N, so N = 2 A / (J dt) bounds the jerk by J.
//
// The price is a delay of (N - 1) / 2 steps, and none in precision: a target that keeps within the limits is followed
// exactly by the first stage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace vlar1 {

struct JointLimits {
  double lower, upper;  // rad; finite
  double velocity, acceleration, jerk;  // rad/s, rad/s^2, rad/s^3; above 0
};

class JointLimiter {
 public:
  static constexpr int kMostSamples = 400;  // of the mean; a lower jerk than that allows for lowers the acceleration

  JointLimiter(const JointLimits& limits, double period_s) : limits_(limits), dt_(period_s) {
    // Time from rest to full velocity is V / A + 2 A / J: more acceleration than sqrt(V J / 2) makes it longer.
    double a = std::min(limits.acceleration, std::sqrt(limits.velocity * limits.jerk / 2.0));
    a = std::min(a, limits.jerk * dt_ * kMostSamples / 2.0);
    step_v_ = a * dt_;
    const int n = static_cast<int>(std::ceil(2.0 * a / (limits.jerk * dt_)));
    history_.assign(static_cast<size_t>(std::clamp(n, 1, kMostSamples)), 0.0);
    reset(std::clamp(0.0, limits.lower, limits.upper));
  }

  // At rest at `position`, which may lie outside the limits: then only the way back in is open.
  void reset(double position) {
    p_ = position;
    v_ = 0.0;
    lower_ = std::min(limits_.lower, position);
    upper_ = std::max(limits_.upper, position);
    std::fill(history_.begin(), history_.end(), position);
    out_ = position;
  }

  // One step towards `target`, which moves at `rate` (rad/s).
  void follow(double target, double rate) {
    target = std::clamp(target, lower_, upper_);
    // Left over after a step at the target's own rate; closed as fast as can be braked from again.
    const double left = target - p_ - rate * dt_;
    advance(rate + std::copysign(braking(std::fabs(left), kTracking * step_v_), left));
  }

  // One step of slowing down by `decrease` (rad/s); no more than the acceleration limit.
  void brake(double decrease) {
    decrease = std::min(decrease, step_v_);
    advance(std::fabs(v_) <= decrease ? 0.0 : v_ - std::copysign(decrease, v_));
  }

  double setpoint() const { return out_; }
  double within(double position) const { return std::clamp(position, lower_, upper_); }
  double ahead() const { return p_; }        // where the setpoint will be once the mean has caught up
  double velocity() const { return v_; }     // rad/s, of the first stage
  double step_velocity() const { return step_v_; }  // the most that velocity changes in a step
  double most_velocity() const { return limits_.velocity; }
  size_t samples() const { return history_.size(); }
  bool settled() const {
    return std::fabs(v_) < kStill &&
           std::all_of(history_.begin(), history_.end(), [this](double p) { return std::fabs(p - p_) < kStill; });
  }

 private:
  static constexpr double kStill = 1e-9;
  static constexpr double kTracking = 0.8;  // of the acceleration, to catch up with a target that brakes itself

  // The greatest velocity that moves no further than `distance` in all when it falls by `fall` from step to step:
  // with n more steps, distance = dt ((n + 1) v - fall n (n + 1) / 2).
  double braking(double distance, double fall) const {
    if (distance <= 0.0) return 0.0;
    const double unit = fall * dt_;
    const double n = std::floor((std::sqrt(1.0 + 8.0 * distance / unit) - 1.0) / 2.0);
    return (distance / dt_ + fall * n * (n + 1.0) / 2.0) / (n + 1.0);
  }

  void advance(double wanted) {
    double low = std::max(v_ - step_v_, -limits_.velocity);
    double high = std::min(v_ + step_v_, limits_.velocity);
    high = std::min(high, braking(upper_ - p_, step_v_));
    low = std::max(low, -braking(p_ - lower_, step_v_));
    // Rounding can turn the two about by the last bit; the nearer to rest is the safe one.
    v_ = low <= high ? std::clamp(wanted, low, high) : (std::fabs(low) < std::fabs(high) ? low : high);
    p_ = std::clamp(p_ + v_ * dt_, lower_, upper_);
    // Once back inside, the limits are those asked for.
    lower_ = std::max(lower_, std::min(limits_.lower, p_));
    upper_ = std::min(upper_, std::max(limits_.upper, p_));
    history_[next_] = p_;
    next_ = (next_ + 1) % history_.size();
    double sum = 0.0;
    for (double p : history_) sum += p - p_;  // differences: exact at rest
    out_ = p_ + sum / static_cast<double>(history_.size());
  }

  JointLimits limits_;
  double dt_, step_v_ = 0.0;
  double p_ = 0.0, v_ = 0.0, lower_ = 0.0, upper_ = 0.0, out_ = 0.0;
  std::vector<double> history_;
  size_t next_ = 0;
};

}  // namespace vlar1
