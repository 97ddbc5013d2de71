#include "motion.hpp"

#include <algorithm>
#include <cmath>

namespace vlar1 {
namespace {

// So far a joint may be from the plan before its clock slows down: joints that wait for one another stay near the
// plan's path, where one that lags alone would leave it. It comes to that only where a plan does not begin where the
// arm is; for the rest see `pace`.
constexpr double kLagRad = 0.02;
constexpr double kSlowest = 0.01;  // of a plan's clock, or it would stand still where the plan begins in motion
constexpr double kArrivedRad = 1e-9;

}  // namespace

Motion::Motion(const std::vector<JointLimits>& limits, double period_s) : period_s_(period_s) {
  for (const JointLimits& joint : limits) limiters_.emplace_back(joint, period_s);
  setpoints_.assign(limits.size(), 0.0);
  target_.assign(limits.size(), 0.0);
  for (size_t i = 0; i < joints(); ++i) setpoints_[i] = limiters_[i].setpoint();
}

void Motion::reset(const double* position) {
  for (size_t i = 0; i < joints(); ++i) {
    limiters_[i].reset(position[i]);
    setpoints_[i] = position[i];
  }
  plan_ = Plan{};
  mode_ = Mode::kRest;
}

void Motion::follow(const Plan& plan, double elapsed_s) {
  plan_ = plan;
  elapsed_s_ = elapsed_s;
  patience_ = 1.0;
  segment_ = 0;
  mode_ = Mode::kPlan;
  pace();
}

// How fast the plan's clock may run at each waypoint so that no joint is asked for more than its velocity and
// acceleration limits: the plan is slowed down where it is too fast, and its path stays what it is. With q(s) the path
// over the plan's own time s and r = ds/dt: dq/dt = q' r and d2q/dt2 = q'' r^2 + q' (d(r^2)/ds) / 2. Half of the
// acceleration is for the first term, half for the second, which a pass in each direction keeps (Bobrow et al., 1985).
void Motion::pace() {
  const size_t n = joints(), count = plan_.count;
  squared_rate_.assign(count, 1.0);
  if (count < 2) return;
  bool too_fast = false;
  std::vector<double>& change = rate_change_;  // the most that r^2 may change a second of plan time, by segment
  change.assign(count - 1, HUGE_VAL);
  for (size_t k = 0; k + 1 < count; ++k) {
    const double h = plan_.times_s[k + 1] - plan_.times_s[k];
    for (size_t i = 0; i < n; ++i) {
      const size_t a = k * n + i, b = a + n;
      const double mean = (plan_.positions[b] - plan_.positions[a]) / h;
      const double v0 = plan_.velocities[a], v1 = plan_.velocities[b];
      // The cubic's greatest values: acceleration at an end, velocity at an end or, nearly, in the middle.
      const double v = std::max({std::fabs(v0), std::fabs(v1), std::fabs(1.5 * mean - 0.25 * (v0 + v1))});
      const double acceleration =
          std::max(std::fabs(6.0 * mean - 4.0 * v0 - 2.0 * v1), std::fabs(6.0 * mean - 2.0 * v0 - 4.0 * v1)) / h;
      const double most_v = limiters_[i].most_velocity(), most_a = limiters_[i].step_velocity() / period_s_;
      if (v > most_v || acceleration > most_a) too_fast = true;
      const double r2 = std::min(v > 0 ? most_v * most_v / (v * v) : 1.0, acceleration > 0 ? 0.5 * most_a / acceleration : 1.0);
      squared_rate_[k] = std::min(squared_rate_[k], r2);
      squared_rate_[k + 1] = std::min(squared_rate_[k + 1], r2);
      if (v > 0) change[k] = std::min(change[k], most_a / v);
    }
  }
  for (size_t i = 0; i < n; ++i)
    if (plan_.velocities[(count - 1) * n + i] != 0.0) squared_rate_[count - 1] = 0.0, too_fast = true;
  if (!too_fast) {
    squared_rate_.assign(count, 1.0);
    return;
  }
  for (size_t k = count - 1; k-- > 0;) {
    const double h = plan_.times_s[k + 1] - plan_.times_s[k];
    squared_rate_[k] = std::min(squared_rate_[k], squared_rate_[k + 1] + change[k] * h);
  }
  for (size_t k = 0; k + 1 < count; ++k) {
    const double h = plan_.times_s[k + 1] - plan_.times_s[k];
    squared_rate_[k + 1] = std::min(squared_rate_[k + 1], squared_rate_[k] + change[k] * h);
  }
}

double Motion::clock_rate() const {
  if (plan_.count < 2 || elapsed_s_ < plan_.times_s[0]) return 1.0;
  const double h = plan_.times_s[segment_ + 1] - plan_.times_s[segment_];
  const double s = std::clamp((elapsed_s_ - plan_.times_s[segment_]) / h, 0.0, 1.0);
  const double r2 = squared_rate_[segment_] + s * (squared_rate_[segment_ + 1] - squared_rate_[segment_]);
  return patience_ * std::max(std::sqrt(r2), kSlowest);
}

void Motion::brake() {
  plan_ = Plan{};
  mode_ = Mode::kBrake;
}

void Motion::hold_at(const double* position) {
  plan_ = Plan{};
  std::copy(position, position + joints(), target_.begin());
  mode_ = Mode::kTarget;
}

void Motion::seek() {
  while (segment_ + 2 < plan_.count && plan_.times_s[segment_ + 1] <= elapsed_s_) ++segment_;
}

// Cubic Hermite interpolation; at rest before the first waypoint and after the last.
void Motion::sample(double t, size_t joint, double* position, double* rate) const {
  const size_t n = joints();
  const double first = plan_.times_s[0], last = plan_.times_s[plan_.count - 1];
  if (plan_.count == 1 || t <= first || t >= last) {
    *position = plan_.positions[(t <= first ? 0 : plan_.count - 1) * n + joint];
    *rate = 0.0;
    return;
  }
  const size_t a = segment_ * n + joint, b = a + n;
  const double h = plan_.times_s[segment_ + 1] - plan_.times_s[segment_];
  const double s = (t - plan_.times_s[segment_]) / h;
  const double p0 = plan_.positions[a], p1 = plan_.positions[b];
  const double m0 = plan_.velocities[a] * h, m1 = plan_.velocities[b] * h;
  const double c = 3.0 * (p1 - p0) - 2.0 * m0 - m1, d = 2.0 * (p0 - p1) + m0 + m1;
  *position = p0 + s * (m0 + s * (c + s * d));
  *rate = (m0 + s * (2.0 * c + s * 3.0 * d)) / h;
}

const double* Motion::step() {
  if (mode_ == Mode::kPlan) {
    seek();
    const double rate_of_clock = clock_rate();
    elapsed_s_ += rate_of_clock * period_s_;
    seek();
    double lag = 0.0, slew = HUGE_VAL;
    for (size_t i = 0; i < joints(); ++i) {
      double position = 0.0, rate = 0.0;
      sample(elapsed_s_, i, &position, &rate);
      if (!std::isfinite(position) || !std::isfinite(rate)) position = limiters_[i].ahead(), rate = 0.0;
      limiters_[i].follow(position, rate * rate_of_clock);
      lag = std::max(lag, std::fabs(limiters_[i].within(position) - limiters_[i].ahead()));
      slew = std::min(slew, limiters_[i].step_velocity() / limiters_[i].most_velocity());
    }
    // No faster than the joints can slow down themselves.
    patience_ += std::clamp(std::clamp(2.0 - lag / kLagRad, 0.0, 1.0) - patience_, -slew, slew);
  } else if (mode_ == Mode::kBrake) {
    double steps = 1.0;
    for (const JointLimiter& limiter : limiters_)
      steps = std::max(steps, std::ceil(std::fabs(limiter.velocity()) / limiter.step_velocity()));
    for (JointLimiter& limiter : limiters_) limiter.brake(std::fabs(limiter.velocity()) / steps);
  } else {
    for (size_t i = 0; i < joints(); ++i)
      limiters_[i].follow(mode_ == Mode::kTarget ? target_[i] : limiters_[i].ahead(), 0.0);
  }
  for (size_t i = 0; i < joints(); ++i) setpoints_[i] = limiters_[i].setpoint();
  return setpoints_.data();
}

bool Motion::settled() const {
  if (mode_ == Mode::kPlan && elapsed_s_ < plan_.times_s[plan_.count - 1]) return false;
  for (size_t i = 0; i < joints(); ++i) {
    const JointLimiter& limiter = limiters_[i];
    if (!limiter.settled()) return false;
    double goal = limiter.ahead();
    if (mode_ == Mode::kTarget) goal = target_[i];
    if (mode_ == Mode::kPlan) goal = plan_.positions[(plan_.count - 1) * joints() + i];
    if (std::fabs(limiter.within(goal) - limiter.ahead()) > kArrivedRad) return false;
  }
  return true;
}

}  // namespace vlar1
