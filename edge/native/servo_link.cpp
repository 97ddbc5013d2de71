#include "servo_link.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>

#include "motion.hpp"
#include "packets.hpp"
#include "port.hpp"
#include "shared.hpp"

namespace nb = nanobind;

namespace vlar1 {
namespace {

using Vector = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

int64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

template <typename T>
nb::object array_of(std::vector<size_t> shape, const std::vector<T>& values) {
  T* data = new T[values.size() ? values.size() : 1];
  std::copy(values.begin(), values.end(), data);
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner));
}

template <typename T>
nb::object array_of(const T* values, size_t n) {
  return array_of<T>({n}, std::vector<T>(values, values + n));
}

// A plan's arrays: (n,), (n, joints), (n, joints); finite, times increasing.
void check_plan(const Vector& times, const Matrix& positions, const Matrix& velocities, size_t joints) {
  const size_t n = times.shape(0);
  if (n == 0) throw nb::value_error("a plan needs a waypoint");
  for (const Matrix* m : {&positions, &velocities}) {
    if (m->shape(0) != n || m->shape(1) != joints)
      throw nb::value_error("positions and velocities must be (waypoints, joints)");
    for (size_t i = 0; i < n * joints; ++i)
      if (!std::isfinite(m->data()[i])) throw nb::value_error("a plan's numbers must be finite");
  }
  for (size_t i = 0; i < n; ++i)
    if (!std::isfinite(times.data()[i]) || (i > 0 && !(times.data()[i] > times.data()[i - 1])))
      throw nb::value_error("a plan's times must be finite and increase");
}

Register register_of(nb::handle value) {
  const auto fields = nb::cast<std::vector<int>>(value);
  if (fields.size() != 4) throw nb::value_error("a register is (address, size, sign_bit or -1, signed)");
  Register reg;
  reg.address = static_cast<uint16_t>(fields[0]);
  reg.size = static_cast<uint16_t>(fields[1]);
  reg.sign_bit = static_cast<int16_t>(fields[2]);
  reg.is_signed = static_cast<int16_t>(fields[3]);
  return reg;
}

void put_text(const nb::dict& config, const char* name, char* out) {
  const auto text = nb::cast<std::string>(config[name]);
  if (text.size() >= kPathBytes) throw nb::value_error("a path is too long");
  std::strcpy(out, text.c_str());
}

Config config_of(const nb::dict& d) {
  Config c;
  put_text(d, "port", c.port);
  put_text(d, "usb_serial", c.usb_serial);
  put_text(d, "sys_root", c.sys_root);
  put_text(d, "dev_root", c.dev_root);
  c.baudrate = nb::cast<uint32_t>(d["baudrate"]);
  BusLayout& layout = c.layout;
  layout.protocol = nb::cast<uint32_t>(d["protocol"]);
  const auto registers = nb::cast<nb::dict>(d["registers"]);
  const std::pair<const char*, Register*> names[] = {
      {"goal", &layout.goal},         {"torque", &layout.torque}, {"block", &layout.block},
      {"position", &layout.position}, {"velocity", &layout.velocity}, {"load", &layout.load},
      {"voltage", &layout.voltage},   {"temperature", &layout.temperature}};
  for (const auto& [name, reg] : names) *reg = register_of(registers[name]);
  for (const Register* r : {&layout.position, &layout.velocity, &layout.load, &layout.voltage, &layout.temperature})
    if (r->address < layout.block.address || r->address + r->size > layout.block.address + layout.block.size)
      throw nb::value_error("a register lies outside the block that is read");
  const std::pair<const char*, double*> numbers[] = {
      {"velocity_unit_rad_s", &layout.velocity_unit_rad_s},
      {"load_unit", &layout.load_unit},
      {"voltage_unit_v", &layout.voltage_unit_v},
      {"period_s", &c.period_s},
      {"command_timeout_s", &c.command_timeout_s},
      {"bus_timeout_s", &c.bus_timeout_s},
      {"servo_timeout_s", &c.servo_timeout_s},
      {"contact_load", &c.contact_load},
      {"contact_time_s", &c.contact_time_s},
      {"tracking_rad", &c.tracking_rad},
      {"tracking_time_s", &c.tracking_time_s},
      {"max_temperature_c", &c.max_temperature_c},
      {"min_voltage_v", &c.min_voltage_v}};
  for (const auto& [name, value] : numbers) *value = nb::cast<double>(d[name]);
  c.realtime = nb::cast<bool>(d["realtime"]);
  c.cpu = nb::cast<int>(d["cpu"]);
  const auto joints = nb::cast<nb::list>(d["joints"]);
  if (joints.size() == 0 || joints.size() > kMaxJoints) throw nb::value_error("1 to 16 joints are supported");
  c.joint_count = static_cast<uint32_t>(joints.size());
  for (size_t i = 0; i < joints.size(); ++i) {
    const auto joint = nb::cast<nb::dict>(joints[i]);
    JointConfig& j = c.joints[i];
    j.id = nb::cast<uint8_t>(joint["id"]);
    j.direction = nb::cast<int8_t>(joint["direction"]);
    j.may_squeeze = nb::cast<bool>(joint["may_squeeze"]);
    const std::pair<const char*, double*> fields[] = {
        {"zero_count", &j.zero_count},       {"rad_per_count", &j.rad_per_count},
        {"lower_rad", &j.lower_rad},         {"upper_rad", &j.upper_rad},
        {"velocity_rad_s", &j.velocity_rad_s}, {"acceleration_rad_s2", &j.acceleration_rad_s2},
        {"jerk_rad_s3", &j.jerk_rad_s3}};
    for (const auto& [name, value] : fields) *value = nb::cast<double>(joint[name]);
    if (!(j.lower_rad < j.upper_rad && j.velocity_rad_s > 0 && j.acceleration_rad_s2 > 0 && j.jerk_rad_s3 > 0))
      throw nb::value_error("a joint's limits must be positive, and lower below upper");
  }
  return c;
}

// What anybody may do who has the shared memory: look, and say stop.
class View {
 public:
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  void stop() { shared_->stop_calls.fetch_add(1, std::memory_order_acq_rel); }
  uint32_t stop_calls() const { return shared_->stop_calls.load(std::memory_order_acquire); }

  nb::dict snapshot() const {
    auto s = std::make_unique<Snapshot>();
    if (!shared_->snapshot.read(s.get())) throw nb::value_error("the servo loop's snapshot could not be read");
    const size_t n = shared_->config.joint_count;
    nb::dict d;
    d["cycle"] = s->cycle;
    d["t_ns"] = s->t_ns;
    d["state"] = s->state;
    d["cause"] = s->cause;
    d["cause_joint"] = s->cause_joint;
    d["settled"] = s->settled != 0;
    d["plan"] = s->plan;
    d["connected"] = s->connected != 0;
    d["plan_elapsed_s"] = s->plan_elapsed_s;
    d["setpoint_rad"] = array_of(s->setpoint_rad, n);
    d["ahead_rad"] = array_of(s->ahead_rad, n);
    d["position_rad"] = array_of(s->position_rad, n);
    d["position_ns"] = array_of(s->position_ns, n);
    d["velocity_rad_s"] = array_of(s->velocity_rad_s, n);
    d["load"] = array_of(s->load, n);
    d["voltage_v"] = array_of(s->voltage_v, n);
    d["temperature_c"] = array_of(s->temperature_c, n);
    d["torque"] = array_of(s->torque, n);
    d["fault"] = array_of(s->fault, n);
    d["released"] = array_of(s->released, n);
    d["missed"] = s->missed;
    d["write_failures"] = s->write_failures;
    d["timeouts"] = s->timeouts;
    d["damaged"] = s->damaged;
    d["stale"] = s->stale;
    d["echoed"] = s->echoed;
    d["implausible"] = s->implausible;
    d["faults"] = s->faults;
    d["lost"] = s->lost;
    d["reopened"] = s->reopened;
    d["histogram"] = array_of(s->histogram, kBins);
    d["port"] = std::string(s->port);
    d["hold_began_ns"] = shared_->hold_began_ns.load();
    return d;
  }

  // The cycles from number `since` on, as far back as the ring reaches: (next number, t_ns (m,), busy_ns (m,), setpoint_rad (m, n),
  // position_rad (m, n), state (m,), written (m,)).
  nb::tuple ring(uint64_t since) const {
    const size_t n = shared_->config.joint_count;
    const uint64_t next = shared_->ring_next.load(std::memory_order_acquire);
    constexpr uint64_t kMargin = 64;  // the writer may be on its way round
    uint64_t first = std::max(since, next > kRing - kMargin ? next - (kRing - kMargin) : 0);
    first = std::min(first, next);
    const size_t m = static_cast<size_t>(next - first);
    std::vector<int64_t> t(m), busy(m);
    std::vector<float> setpoint(m * n), position(m * n);
    std::vector<uint32_t> state(m), written(m);
    for (size_t i = 0; i < m; ++i) {
      const Sample& sample = shared_->ring[(first + i) % kRing];
      t[i] = sample.t_ns;
      busy[i] = sample.busy_ns;
      state[i] = sample.state;
      written[i] = sample.written;
      std::copy(sample.setpoint_rad, sample.setpoint_rad + n, &setpoint[i * n]);
      std::copy(sample.position_rad, sample.position_rad + n, &position[i * n]);
    }
    return nb::make_tuple(next, array_of<int64_t>({m}, t), array_of<int64_t>({m}, busy), array_of<float>({m, n}, setpoint),
                          array_of<float>({m, n}, position), array_of<uint32_t>({m}, state),
                          array_of<uint32_t>({m}, written));
  }

 protected:
  View() = default;
  ~View() {
    if (shared_) munmap(shared_, sizeof(Shared));
    if (fd_ >= 0) close(fd_);
  }

  // The memory behind fd_, which this object closes.
  void* map() {
    void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "shared memory of the servo loop");
    return memory;
  }

  Shared* shared_ = nullptr;
  int fd_ = -1;
};

// The end of a third process, which was handed the descriptor; it is closed with this.
class Watch : public View {
 public:
  explicit Watch(int fd) {
    struct stat info{};
    if (fstat(fd, &info) < 0 || static_cast<size_t>(info.st_size) != sizeof(Shared))
      throw nb::value_error("this is no servo loop's memory, or one of another version");
    fd_ = fd;
    auto* memory = static_cast<Shared*>(map());
    shared_ = memory;
    if (memory->magic != kMagic || memory->size != sizeof(Shared)) throw nb::value_error("this is no servo loop's memory");
  }
};

class Link : public View {
 public:
  explicit Link(const nb::dict& config) {
    const Config c = config_of(config);
    fd_ = memfd_create("vlar1-servo", MFD_CLOEXEC);
    if (fd_ < 0 || ftruncate(fd_, sizeof(Shared)) != 0)
      throw std::system_error(errno, std::generic_category(), "shared memory for the servo loop");
    shared_ = new (map()) Shared;
    shared_->config = c;
    heard();
  }

  int fd() const { return fd_; }
  void heard() { shared_->heard_ns.store(now_ns(), std::memory_order_release); }

  uint32_t write_plan(const Vector& times, const Matrix& positions, const Matrix& velocities) {
    const size_t n = times.shape(0), joints = shared_->config.joint_count;
    check_plan(times, positions, velocities, joints);
    if (n > kMaxWaypoints) throw nb::value_error("a plan has at most 8192 waypoints");
    slot_ = (slot_ + 1) % kPlanSlots;  // not the one that is followed now
    PlanSlot& slot = shared_->plans[slot_];
    slot.count = n;
    std::copy(times.data(), times.data() + n, slot.times_s);
    std::copy(positions.data(), positions.data() + n * joints, slot.positions_rad);
    std::copy(velocities.data(), velocities.data() + n * joints, slot.velocities_rad_s);
    return slot_;
  }

  uint32_t post(uint32_t kind, uint32_t plan, bool parking, double elapsed_s,
                const std::vector<double>& position_rad) {
    Command& c = shared_->command;
    c.kind = kind;
    c.slot = slot_;
    c.plan = plan;
    c.parking = parking;
    c.elapsed_s = elapsed_s;
    if (position_rad.size() > kMaxJoints) throw nb::value_error("too many joints");
    std::copy(position_rad.begin(), position_rad.end(), c.position_rad);
    return raise();
  }

  uint32_t post_transaction(uint32_t operation, const std::vector<uint8_t>& ids, uint16_t address, uint16_t size,
                            const std::vector<nb::bytes>& data) {
    if (ids.empty() || ids.size() > kMaxJoints || size > kTransactBytes || (!data.empty() && data.size() != ids.size()))
      throw nb::value_error("1 to 16 servos and at most 64 bytes each");
    Command& c = shared_->command;
    c.kind = static_cast<uint32_t>(CommandKind::kTransact);
    c.operation = operation;
    c.id_count = static_cast<uint32_t>(ids.size());
    std::copy(ids.begin(), ids.end(), c.ids);
    c.address = address;
    c.size = size;
    for (size_t i = 0; i < data.size(); ++i) {
      if (data[i].size() != size) throw nb::value_error("data must have the register's size");
      std::memcpy(c.data + i * kTransactBytes, data[i].c_str(), size);
    }
    return raise();
  }

  bool done(uint32_t number) const { return shared_->command_done.load(std::memory_order_acquire) == number; }
  uint32_t result() const { return shared_->reply.result; }

  // {id: (error, bytes)} of the servos that answered a transaction.
  nb::dict answers() const {
    nb::dict out;
    const Command& c = shared_->command;
    const Reply& r = shared_->reply;
    for (size_t i = 0; i < c.id_count; ++i)
      if (r.answered >> i & 1)
        out[nb::int_(c.ids[i])] = nb::make_tuple(
            r.errors[i], nb::bytes(reinterpret_cast<const char*>(r.data + i * kTransactBytes), c.size));
    return out;
  }

  // (started, and the errno of each privilege asked for: real-time priority, locked memory, CPU).
  nb::tuple start_report() const {
    return nb::make_tuple(shared_->started.load(), shared_->realtime_errno.load(), shared_->memory_errno.load(),
                          shared_->cpu_errno.load());
  }

 private:
  uint32_t raise() {
    const uint32_t number = shared_->command_number.load(std::memory_order_relaxed) + 1;
    shared_->command_number.store(number, std::memory_order_release);
    return number;
  }

  uint32_t slot_ = 0;
};

// `Motion` with the plan's memory its own, for tests and for whoever wants to see what the loop would send.
class OwnedMotion {
 public:
  // limits: (joints, 5): lower, upper, velocity, acceleration, jerk.
  OwnedMotion(const Matrix& limits, double period_s) : motion_(limits_of(limits), period_s) {
    if (!(period_s > 0)) throw nb::value_error("the period must be above 0");
  }
  void reset(const Vector& q) { motion_.reset(checked(q)); }
  void hold_at(const Vector& q) { motion_.hold_at(checked(q)); }
  void brake() { motion_.brake(); }
  bool settled() const { return motion_.settled(); }
  double elapsed_s() const { return motion_.elapsed_s(); }
  void follow(const Vector& times, const Matrix& positions, const Matrix& velocities, double elapsed_s) {
    check_plan(times, positions, velocities, motion_.joints());
    const size_t n = times.shape(0), joints = motion_.joints();
    times_.assign(times.data(), times.data() + n);
    positions_.assign(positions.data(), positions.data() + n * joints);
    velocities_.assign(velocities.data(), velocities.data() + n * joints);
    motion_.follow({n, times_.data(), positions_.data(), velocities_.data()}, elapsed_s);
  }
  nb::object step(size_t count) {
    const size_t joints = motion_.joints();
    std::vector<double> out(count * joints);
    for (size_t i = 0; i < count; ++i) {
      const double* q = motion_.step();
      std::copy(q, q + joints, &out[i * joints]);
    }
    return array_of<double>({count, joints}, out);
  }

 private:
  static std::vector<JointLimits> limits_of(const Matrix& limits) {
    std::vector<JointLimits> out;
    if (limits.shape(1) != 5) throw nb::value_error("limits must be (joints, 5)");
    for (size_t i = 0; i < limits.shape(0); ++i) {
      const double* row = limits.data() + i * 5;
      if (!(row[0] < row[1] && row[2] > 0 && row[3] > 0 && row[4] > 0)) throw nb::value_error("limits must be positive");
      out.push_back({row[0], row[1], row[2], row[3], row[4]});
    }
    return out;
  }
  const double* checked(const Vector& q) const {
    if (q.shape(0) != motion_.joints()) throw nb::value_error("one position a joint is needed");
    return q.data();
  }

  Motion motion_;
  std::vector<double> times_, positions_, velocities_;
};

nb::bytes build_packet(uint32_t protocol, uint8_t id, uint8_t instruction, const nb::bytes& params) {
  const auto* data = reinterpret_cast<const uint8_t*>(params.c_str());
  const Bytes out = build(static_cast<Protocol>(protocol), id, instruction, Bytes(data, data + params.size()));
  return nb::bytes(reinterpret_cast<const char*>(out.data()), out.size());
}

// The status packets (id, error, params) in a stream that came in pieces, and how many were damaged.
nb::tuple parse_packets(uint32_t protocol, const std::vector<nb::bytes>& pieces, int params) {
  Parser parser(static_cast<Protocol>(protocol));
  nb::list found;
  for (const nb::bytes& piece : pieces) {
    parser.feed(reinterpret_cast<const uint8_t*>(piece.c_str()), piece.size());
    Status s;
    while (parser.next(&s, params))
      found.append(nb::make_tuple(s.id, s.error, nb::bytes(reinterpret_cast<const char*>(s.params.data()), s.params.size())));
  }
  return nb::make_tuple(found, parser.damaged);
}

nb::bytes encode_value(nb::handle reg, int64_t value) {
  const Register r = register_of(reg);
  uint8_t out[8] = {};
  encode(r, value, out);
  return nb::bytes(reinterpret_cast<const char*>(out), r.size);
}

int64_t decode_value(nb::handle reg, const nb::bytes& data) {
  const Register r = register_of(reg);
  if (data.size() != r.size) throw nb::value_error("the register has another size");
  return decode(r, reinterpret_cast<const uint8_t*>(data.c_str()));
}

}  // namespace

void bind_servo(nb::module_& m) {
  nb::class_<View>(m, "View")
      .def("stop", &View::stop)
      .def("stop_calls", &View::stop_calls)
      .def("snapshot", &View::snapshot)
      .def("ring", &View::ring, nb::arg("since"));
  nb::class_<Watch, View>(m, "Watch").def(nb::init<int>(), nb::arg("fd"));
  nb::class_<Link, View>(m, "Link")
      .def(nb::init<nb::dict>(), nb::arg("config"))
      .def_prop_ro("fd", &Link::fd)
      .def("heard", &Link::heard)
      .def("write_plan", &Link::write_plan, nb::arg("times_s"), nb::arg("positions_rad"), nb::arg("velocities_rad_s"))
      .def("post", &Link::post, nb::arg("kind"), nb::arg("plan") = 0, nb::arg("parking") = false, nb::arg("elapsed_s") = 0.0,
           nb::arg("position_rad") = std::vector<double>())
      .def("post_transaction", &Link::post_transaction, nb::arg("operation"), nb::arg("ids"), nb::arg("address"),
           nb::arg("size"), nb::arg("data"))
      .def("done", &Link::done, nb::arg("number"))
      .def("result", &Link::result)
      .def("answers", &Link::answers)
      .def("start_report", &Link::start_report);
  nb::class_<OwnedMotion>(m, "Motion")
      .def(nb::init<Matrix, double>(), nb::arg("limits"), nb::arg("period_s"))
      .def("reset", &OwnedMotion::reset, nb::arg("position_rad"))
      .def("hold_at", &OwnedMotion::hold_at, nb::arg("position_rad"))
      .def("brake", &OwnedMotion::brake)
      .def("follow", &OwnedMotion::follow, nb::arg("times_s"), nb::arg("positions_rad"), nb::arg("velocities_rad_s"),
           nb::arg("elapsed_s") = 0.0)
      .def("step", &OwnedMotion::step, nb::arg("count") = 1)
      .def_prop_ro("settled", &OwnedMotion::settled)
      .def_prop_ro("elapsed_s", &OwnedMotion::elapsed_s);
  m.def("build_packet", &build_packet, nb::arg("protocol"), nb::arg("id"), nb::arg("instruction"), nb::arg("params"));
  m.def("parse_packets", &parse_packets, nb::arg("protocol"), nb::arg("pieces"), nb::arg("params"));
  m.def("encode_value", &encode_value, nb::arg("register"), nb::arg("value"));
  m.def("decode_value", &decode_value, nb::arg("register"), nb::arg("data"));
  m.def("usb_serial_of", [](const std::string& sys_root, const std::string& device) {
    return usb_serial_of({sys_root, ""}, device);
  }, nb::arg("sys_root"), nb::arg("device"));
}

}  // namespace vlar1
