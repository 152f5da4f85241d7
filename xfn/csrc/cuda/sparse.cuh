// Products over the entries of a sparse pattern, and the attention made of them; a warp a line. A number is summed by one
// warp, in one order, so there are no atomics and bits repeat.
//
//     forward    s = scale · q · k,  P = softmax(s) over a row,  out = Σ (P ∘ D) v,  lse
//     queries    δ = dout · out − dlse;  dS = P ∘ (D ∘ (dout · v) − δ),  dq = scale Σ dS k       by row
//     keys       dk = scale Σ dS q,  dv = Σ (P ∘ D) dout                      by column, P and dS computed again
//     between    values = q · k
//     mix        Σ values · v by row, or Σ values · q by column
//     softmax    of values, over a row
#pragma once
#include "warp.cuh"

namespace xfn {

// The task of a warp: a line of one head of one example. Warps take tasks until there are none.
struct Task {
  int64_t index, count, lines, heads;
  __device__ Task(int64_t examples, int64_t heads, int64_t lines)
      : index((int64_t)blockIdx.x * WARPS + threadIdx.x / WARP),
        count(examples * heads * lines),
        lines(lines),
        heads(heads) {}
  __device__ bool left() const { return index < count; }
  __device__ void next() { index += (int64_t)gridDim.x * WARPS; }
  __device__ int64_t line() const { return index % lines; }
  __device__ int64_t head() const { return index / lines % heads; }
  __device__ int64_t example() const { return index / lines / heads; }
};

#define KERNEL template <class T, int N, int E> __global__ void __launch_bounds__(WARP* WARPS, 1)

KERNEL forward(const __grid_constant__ Call p) {
  const Lanes at(p.lanes);
  const float c = p.scale * LOG2E;
  for (Task task(p.B, p.H, p.M); task.left(); task.next()) {
    const int64_t b = task.example(), h = task.head(), m = task.line(), g = h / (p.H / p.G);
    Row<T, N, E> q, o;
    q.load(row_of<T>(p.q, b, m, h), p.K, at);
    float top = -FAR, sum = 0;
    const auto keep = [&](int32_t n) { return kept(p, b, h, m, n); };
    walk(Line::of(p.rows, b, h, m), p.N, at, p.key, keep, [&](const Entry& e) {
      Row<T, N, E> k, v;
      if (e.live) k.load(row_of<T>(p.k, b, e.place, g), p.K, at), v.load(row_of<T>(p.v, b, e.place, g), p.V, at);
      const float dot = at.sum(q.dot(k)), s = e.live ? dot * c : -FAR;
      const float most = fmaxf(top, s), peak = most == -FAR ? 0 : most;
      const float times = exp2f(top - peak), weight = exp2f(s - peak);
      sum = sum * times + weight, top = most;
#pragma unroll
      for (int i = 0; i < E; i++) o.x[i] *= times;
      o.add(e.keep ? weight * p.grow : 0, v);
    });
    for (int step = at.count; step < WARP; step *= 2) {
      const float other = __shfl_xor_sync(ALL, top, step), sums = __shfl_xor_sync(ALL, sum, step);
      const float most = fmaxf(top, other), peak = most == -FAR ? 0 : most;
      const float times = exp2f(top - peak), others = exp2f(other - peak);
      o.join(times, others, step);
      sum = sum * times + sums * others, top = most;
    }
    if (at.group() == 0)
      o.store(static_cast<T*>(p.result) + ((b * p.M + m) * p.H + h) * p.V, p.V, at, sum == 0 ? 0 : 1 / sum);
    if (at.lane == 0) p.numbers[(b * p.H + h) * p.M + m] = sum == 0 ? -FAR : top * LN2 + logf(sum);
  }
}

KERNEL queries(const __grid_constant__ Call p) {
  const Lanes at(p.lanes);
  const float c = p.scale * LOG2E;
  for (Task task(p.B, p.H, p.M); task.left(); task.next()) {
    const int64_t b = task.example(), h = task.head(), m = task.line(), g = h / (p.H / p.G);
    const float lse = number(p.lse, b, h, m);
    Row<T, N, E> q, dout, dq;
    float delta = 0;
    if (p.dout.data) {
      Row<T, N, E> out;
      dout.load(row_of<T>(p.dout, b, m, h), p.V, at), out.load(row_of<T>(p.out, b, m, h), p.V, at);
      delta = at.sum(dout.dot(out));
    }
    delta = lse == -FAR ? 0 : delta - number(p.dlse, b, h, m);
    if (at.lane == 0) p.numbers[(b * p.H + h) * p.M + m] = delta;
    if (!p.result) continue;
    q.load(row_of<T>(p.q, b, m, h), p.K, at);
    const auto keep = [&](int32_t n) { return kept(p, b, h, m, n); };
    walk(Line::of(p.rows, b, h, m), p.N, at, p.key, keep, [&](const Entry& e) {
      Row<T, N, E> k, v;
      if (e.live) k.load(row_of<T>(p.k, b, e.place, g), p.K, at);
      if (e.live && p.dout.data) v.load(row_of<T>(p.v, b, e.place, g), p.V, at);
      const float s = at.sum(q.dot(k)) * c, y = at.sum(dout.dot(v));
      dq.add(e.live ? exp2f(s - base2(lse)) * ((e.keep ? y * p.grow : 0) - delta) : 0, k);
    });
    dq.join(at);
    if (at.group() == 0) dq.store(static_cast<T*>(p.result) + ((b * p.M + m) * p.H + h) * p.K, p.K, at, p.scale);
  }
}

KERNEL keys(const __grid_constant__ Call p) {
  const Lanes at(p.lanes);
  const float c = p.scale * LOG2E;
  const int64_t R = p.H / p.G;
  for (Task task(p.B, p.G, p.N); task.left(); task.next()) {
    const int64_t b = task.example(), g = task.head(), n = task.line();
    Row<T, N, E> k, v, dk, dv;
    k.load(row_of<T>(p.k, b, n, g), p.K, at);
    if (p.dout.data) v.load(row_of<T>(p.v, b, n, g), p.V, at);
    for (int64_t h = g * R; h < (g + 1) * R; h++) {
      const auto keep = [&](int32_t m) { return kept(p, b, h, m, n); };
      walk(Line::of(p.columns, b, h, n), p.M, at, p.key, keep, [&](const Entry& e) {
        Row<T, N, E> q, dout;
        if (e.live) q.load(row_of<T>(p.q, b, e.place, h), p.K, at);
        if (e.live && p.dout.data) dout.load(row_of<T>(p.dout, b, e.place, h), p.V, at);
        const float s = at.sum(k.dot(q)) * c, y = at.sum(v.dot(dout));
        const float lse = e.live ? number(p.lse, b, h, e.place) : -FAR;
        const float delta = e.live ? number(p.delta, b, h, e.place) : 0;
        const float weight = e.live ? exp2f(s - base2(lse)) : 0;
        dk.add(e.live ? weight * ((e.keep ? y * p.grow : 0) - delta) : 0, q);
        dv.add(e.keep ? weight * p.grow : 0, dout);
      });
    }
    dk.join(at), dv.join(at);
    const int64_t row = (b * p.N + n) * p.G + g;
    if (at.group()) continue;
    if (p.result) dk.store(static_cast<T*>(p.result) + row * p.K, p.K, at, p.scale);
    if (p.result2) dv.store(static_cast<T*>(p.result2) + row * p.V, p.V, at, 1);
  }
}

// Of the lines of a head, the last one writes the zeros behind its entries.
__device__ inline void end(const Call& p, const Task& task, const Line& line, float* values, const Lanes& at) {
  if (task.line() + 1 == task.lines)
    for (int64_t z = max(line.first, line.last) + at.lane; z < p.rows.Z; z += WARP) values[z] = 0;
}

KERNEL between(const __grid_constant__ Call p) {
  const Lanes at(p.lanes);
  for (Task task(p.B, p.H, p.M); task.left(); task.next()) {
    const int64_t b = task.example(), h = task.head(), m = task.line(), g = h / (p.H / p.G);
    Row<T, N, E> q;
    q.load(row_of<T>(p.q, b, m, h), p.K, at);
    const Line line = Line::of(p.rows, b, h, m);
    float* values = p.numbers + (b * p.H + h) * p.rows.Z;
    walk(
        line, p.N, at, false, [](int32_t) { return true; },
        [&](const Entry& e) {
          Row<T, N, E> k;
          if (e.live) k.load(row_of<T>(p.k, b, e.place, g), p.K, at);
          const float dot = at.sum(q.dot(k));
          if (e.at < line.last && at.place() == 0) values[e.at] = e.live ? dot : 0;
        });
    end(p, task, line, values, at);
  }
}

// By p.rows, whichever side that is, of p.M lines that meet p.N rows of p.v.
KERNEL mix(const __grid_constant__ Call p) {
  const Lanes at(p.lanes);
  const int64_t each = p.H / p.heads, R = p.H / p.G;
  for (Task task(p.B, p.heads, p.M); task.left(); task.next()) {
    const int64_t b = task.example(), m = task.line();
    Row<T, N, E> o;
    for (int64_t h = task.head() * each; h < (task.head() + 1) * each; h++) {
      const Line line = Line::of(p.rows, b, h, m);
      walk(
          line, p.N, at, false, [](int32_t) { return true; },
          [&](const Entry& e) {
            if (!e.live) return;
            const int64_t z = line.order ? line.order[e.at] : e.at;
            if (z < 0 || z >= p.rows.Z) return;
            Row<T, N, E> v;
            v.load(row_of<T>(p.v, b, e.place, h / R), p.V, at);
            o.add(number(p.values, b, h, z), v);
          });
    }
    o.join(at);
    if (at.group() == 0) o.store(p.numbers + ((b * p.M + m) * p.heads + task.head()) * p.V, p.V, at, 1);
  }
}

__global__ void __launch_bounds__(WARP* WARPS, 1) softmax(const __grid_constant__ Call p) {
  const Lanes at(WARP);
  for (Task task(p.B, p.H, p.M); task.left(); task.next()) {
    const int64_t b = task.example(), h = task.head();
    const Line line = Line::of(p.rows, b, h, task.line());
    float* values = p.numbers + (b * p.H + h) * p.rows.Z;
    float top = -FAR, sum = 0;
    for (int64_t z = line.first + at.lane; z < line.last; z += WARP) top = fmaxf(top, number(p.values, b, h, z));
    for (int step = WARP / 2; step; step /= 2) top = fmaxf(top, __shfl_xor_sync(ALL, top, step));
    const float peak = top == -FAR ? 0 : top;
    for (int64_t z = line.first + at.lane; z < line.last; z += WARP)
      sum += exp2f((number(p.values, b, h, z) - peak) * LOG2E);
    sum = at.sum(sum);
    for (int64_t z = line.first + at.lane; z < line.last; z += WARP)
      values[z] = sum == 0 ? 0 : exp2f((number(p.values, b, h, z) - peak) * LOG2E) / sum;
    end(p, task, line, values, at);
  }
}

#undef KERNEL

}  // namespace xfn
