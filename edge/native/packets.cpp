#include "packets.hpp"

#include <algorithm>

namespace vlar1 {
namespace {

constexpr uint8_t kStatus = 0x55;

void put16(Bytes* out, uint16_t value) {
  out->push_back(static_cast<uint8_t>(value & 0xFF));
  out->push_back(static_cast<uint8_t>(value >> 8));
}

void put_address(Protocol protocol, Bytes* out, uint16_t value) {
  if (protocol == Protocol::kDynamixel)
    put16(out, value);
  else
    out->push_back(static_cast<uint8_t>(value));
}

uint8_t checksum(const uint8_t* data, size_t size) {
  unsigned sum = 0;
  for (size_t i = 0; i < size; ++i) sum += data[i];
  return static_cast<uint8_t>(~sum);
}

// FF FF FD within code and parameters would look like a header: another FD follows it on the wire.
Bytes stuffed(const Bytes& body) {
  Bytes out;
  out.reserve(body.size() + 8);
  for (uint8_t byte : body) {
    out.push_back(byte);
    const size_t n = out.size();
    if (n >= 3 && byte == 0xFD && out[n - 2] == 0xFF && out[n - 3] == 0xFF) out.push_back(0xFD);
  }
  return out;
}

Bytes unstuffed(const uint8_t* data, size_t size) {
  Bytes out;
  out.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    out.push_back(data[i]);
    const bool header = i >= 2 && data[i] == 0xFD && data[i - 1] == 0xFF && data[i - 2] == 0xFF;
    if (header && i + 1 < size && data[i + 1] == 0xFD) ++i;
  }
  return out;
}

}  // namespace

uint16_t crc16(const uint8_t* data, size_t size) {
  uint16_t crc = 0;
  for (size_t i = 0; i < size; ++i) {
    crc = static_cast<uint16_t>(crc ^ (data[i] << 8));
    for (int bit = 0; bit < 8; ++bit) crc = static_cast<uint16_t>(crc & 0x8000 ? (crc << 1) ^ 0x8005 : crc << 1);
  }
  return crc;
}

Bytes build(Protocol protocol, uint8_t id, uint8_t instruction, const Bytes& params) {
  Bytes out;
  if (protocol == Protocol::kFeetech) {
    out = {0xFF, 0xFF, id, static_cast<uint8_t>(params.size() + 2), instruction};
    out.insert(out.end(), params.begin(), params.end());
    out.push_back(checksum(&out[2], out.size() - 2));
    return out;
  }
  Bytes body{instruction};
  body.insert(body.end(), params.begin(), params.end());
  body = stuffed(body);
  out = {0xFF, 0xFF, 0xFD, 0x00, id};
  put16(&out, static_cast<uint16_t>(body.size() + 2));
  out.insert(out.end(), body.begin(), body.end());
  put16(&out, crc16(out.data(), out.size()));
  return out;
}

Bytes build_sync_read(Protocol protocol, const std::vector<uint8_t>& ids, uint16_t address, uint16_t size) {
  Bytes params;
  put_address(protocol, &params, address);
  put_address(protocol, &params, size);
  params.insert(params.end(), ids.begin(), ids.end());
  return build(protocol, kBroadcast, kSyncRead, params);
}

Bytes build_sync_write(Protocol protocol, uint16_t address, uint16_t size, const Bytes& blocks) {
  Bytes params;
  put_address(protocol, &params, address);
  put_address(protocol, &params, size);
  params.insert(params.end(), blocks.begin(), blocks.end());
  return build(protocol, kBroadcast, kSyncWrite, params);
}

Bytes build_write(Protocol protocol, uint8_t id, uint16_t address, const Bytes& data) {
  Bytes params;
  put_address(protocol, &params, address);
  params.insert(params.end(), data.begin(), data.end());
  return build(protocol, id, kWrite, params);
}

int Parser::packet_size(int params) {
  const size_t have = buffer_.size();
  if (have == 0) return -1;
  if (buffer_[0] != 0xFF) return 0;
  if (have < 2) return -1;
  if (buffer_[1] != 0xFF) return 0;
  if (protocol_ == Protocol::kFeetech) {
    if (have < 3) return -1;
    if (buffer_[2] == 0xFF) return 0;
    if (have < 4) return -1;
    const int length = buffer_[3];
    if (length < 2 || (params >= 0 && length != params + 2)) return 0;
    if (have < static_cast<size_t>(length) + 4) return -1;
    if (checksum(&buffer_[2], static_cast<size_t>(length) + 1) != buffer_[static_cast<size_t>(length) + 3]) {
      ++damaged;
      return 0;
    }
    return length + 4;
  }
  if (have < 3) return -1;
  if (buffer_[2] != 0xFD) return 0;
  if (have < 4) return -1;
  if (buffer_[3] != 0x00) return 0;
  if (have < 8) return -1;
  const int length = buffer_[5] | buffer_[6] << 8;
  // Stuffing adds at most a byte for every three.
  const int most = params >= 0 ? 4 + params + (params + 2) / 3 : static_cast<int>(kMaxParams) * 2;
  if (length < 4 || length > most || (params >= 0 && length < params + 4) || buffer_[7] != kStatus) return 0;
  if (have < static_cast<size_t>(length) + 7) return -1;
  const size_t end = static_cast<size_t>(length) + 7;
  if (crc16(buffer_.data(), end - 2) != (buffer_[end - 2] | buffer_[end - 1] << 8)) {
    ++damaged;
    return 0;
  }
  return static_cast<int>(end);
}

bool Parser::next(Status* status, int params) {
  for (;;) {
    const int size = packet_size(params);
    if (size < 0) return false;
    if (size == 0) {
      buffer_.erase(buffer_.begin());
      ++skipped;
      continue;
    }
    if (protocol_ == Protocol::kFeetech) {
      status->id = buffer_[2];
      status->error = buffer_[4];
      status->params.assign(buffer_.begin() + 5, buffer_.begin() + size - 1);
    } else {
      const Bytes body = unstuffed(&buffer_[7], static_cast<size_t>(size) - 9);  // from the code to before the CRC
      status->id = buffer_[4];
      status->error = body.size() > 1 ? body[1] : 0;
      status->params.assign(body.begin() + std::min<ptrdiff_t>(2, static_cast<ptrdiff_t>(body.size())), body.end());
    }
    buffer_.erase(buffer_.begin(), buffer_.begin() + size);
    if (params >= 0 && status->params.size() != static_cast<size_t>(params)) continue;
    return true;
  }
}

void encode(const Register& reg, int64_t value, uint8_t* out) {
  uint64_t word = static_cast<uint64_t>(value);
  if (reg.sign_bit >= 0) {
    word = static_cast<uint64_t>(value < 0 ? -value : value) & ((uint64_t{1} << reg.sign_bit) - 1);
    if (value < 0) word |= uint64_t{1} << reg.sign_bit;
  }
  for (int i = 0; i < reg.size; ++i) out[i] = static_cast<uint8_t>(word >> (8 * i));
}

int64_t decode(const Register& reg, const uint8_t* data) {
  uint64_t word = 0;
  for (int i = 0; i < reg.size; ++i) word |= static_cast<uint64_t>(data[i]) << (8 * i);
  if (reg.sign_bit >= 0) {
    const auto magnitude = static_cast<int64_t>(word & ((uint64_t{1} << reg.sign_bit) - 1));
    return word >> reg.sign_bit & 1 ? -magnitude : magnitude;
  }
  if (reg.is_signed && reg.size < 8 && word >> (8 * reg.size - 1) & 1) word |= ~uint64_t{0} << (8 * reg.size);
  return static_cast<int64_t>(word);
}

}  // namespace vlar1
