// The attention family as torch ops: tensors to a Problem, its tasks to torch's threads. Through torch's stable ABI, so
// that one library serves every release from 2.11 on and every Python.
#include "isa.h"
#include "tensors.h"

namespace {

using Pair = std::tuple<Tensor, Tensor, bool>;  // and whether a number is not finite
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor, bool>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, bool>;

// One call: the problem, and what its pointers point to.
struct Call {
  static constexpr int64_t MOST = 32;  // tensors
  xfn::Problem p{};
  Tensor q;
  Shape batch;
  std::vector<Tensor> alive;
  Maybe nothing;
  Shape offsets;
  std::atomic<bool> broken{false};

  Call(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t threshold) : q(q) {
    alive.reserve(MOST);
    p.M = q.size(-3), p.H = q.size(-2), p.K = q.size(-1);
    p.N = k.size(-3), p.G = k.size(-2), p.V = v.size(-1), p.R = p.H / std::max<int64_t>(1, p.G);
    p.scale = scale, p.keep = 1 - (double)threshold / 65536, p.threshold = (uint32_t)threshold, p.dtype = dtype_of(q);
    p.broken = &broken, p.turns_B = p.turns_G = 1;
  }

  void meet(const Maybe& t, int64_t rank) {
    if (!t) return;
    const int64_t own = t->dim() - rank;
    if ((int64_t)batch.size() < own) batch.insert(batch.begin(), own - batch.size(), 1);
    for (int64_t i = 0; i < own; i++) {
      int64_t& size = batch[batch.size() - own + i];
      if (t->size(i) != 1) size = t->size(i);
    }
  }
  void count() {
    p.B = 1;
    for (int64_t size : batch) p.B *= size;
    offsets.reserve(MOST * p.B);  // once, for p points into it
  }

  // Where every example of t begins.
  const int64_t* examples(const Tensor& t, int64_t rank) {
    STD_TORCH_CHECK((int64_t)offsets.size() + p.B <= MOST * p.B, "more tensors than a call has");
    int64_t* const found = offsets.data() + offsets.size();
    offsets.resize(offsets.size() + p.B, 0);
    const int64_t own = t.dim() - rank;
    int64_t repeat = 1;
    for (int64_t i = own - 1, j = (int64_t)batch.size() - 1; i >= 0; i--, j--) {
      if (t.size(i) != 1)
        for (int64_t b = 0; b < p.B; b++) found[b] += b / repeat % batch[j] * t.stride(i);
      repeat *= batch[j];
    }
    return found;
  }

  const Tensor& dense_last(const Tensor& t) {
    const bool good = t.stride(-1) == 1 || t.size(-1) == 1;
    return alive.emplace_back(good ? t : packed(t));
  }
  static int64_t step(const Tensor& t, int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); }

  void set(xfn::Sequence& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == q.scalar_type(), "operands of one call share a dtype");
    const Tensor& t = dense_last(*from);
    to = {t.const_data_ptr(), examples(t, 3), step(t, -3), step(t, -2)};
  }
  void set(xfn::Rows& to, const Maybe& from, int64_t rank = 2) {
    if (!from) return;
    const bool wide = q.scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(from->scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
                    "lse and slopes have the dtype of sums");
    alive.push_back(*from);
    to = {from->const_data_ptr(), examples(*from, rank), step(*from, rank == 2 ? -2 : -1),
          rank == 2 ? step(*from, -1) : 0};
  }
  void set(xfn::Square& to, const Maybe& from) {
    if (!from) return;
    alive.push_back(*from);
    to = {from->const_data_ptr(), examples(*from, 3), step(*from, -3),
          step(*from, -2),        step(*from, -1),    dtype_of(*from)};
  }
  void set(xfn::Bound& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == ScalarType::Long, "bounds are int64");
    alive.push_back(*from);
    to = {(const int64_t*)from->const_data_ptr(), examples(*from, 1), step(*from, -1)};
  }
  void layout(const Maybe& blocks, const Maybe& index, const Maybe& words, int64_t size) {
    if (!blocks) return;
    STD_TORCH_CHECK(blocks->scalar_type() == ScalarType::Bool, "the tiles of a layout are boolean");
    xfn::Layout& y = p.layout;
    const Tensor& live = dense_last(*blocks);
    y.live = (const uint8_t*)live.const_data_ptr(), y.batch = examples(live, 3);
    y.head = step(live, -3), y.row = step(live, -2), y.columns = live.size(-1), y.size = size;
    while (1 << y.shift < size) y.shift++;
    if (!index) return;
    STD_TORCH_CHECK(index->scalar_type() == ScalarType::Int && words->scalar_type() == ScalarType::Int,
                    "the bits of a layout are int32");
    const Tensor& place = dense_last(*index);
    y.index = (const int32_t*)place.const_data_ptr(), y.index_batch = examples(place, 3);
    y.index_head = step(place, -3), y.index_row = step(place, -2);
    const Tensor& bits = alive.emplace_back(words->is_contiguous() ? *words : packed(*words));
    y.words = (const uint32_t*)bits.const_data_ptr(), y.words_batch = examples(bits, 3);
  }
  void key(const Maybe& from) {
    if (!from) return;
    const Tensor& t = dense_last(*from);
    p.key = (const int64_t*)t.const_data_ptr(), p.key_batch = examples(t, 1);
  }

  Tensor empty(std::initializer_list<int64_t> dims, bool wide = false) {
    Shape shape = batch;
    shape.insert(shape.end(), dims);
    return make(shape, wide && q.scalar_type() != ScalarType::Double ? ScalarType::Float : q.scalar_type());
  }
  const Tensor& none() {
    if (!nothing) nothing = make({0}, q.scalar_type());
    return *nothing;
  }

  // A task for each key head, cut where there are few. Where that touches a sum, it is cut into chunks that do not
  // depend on the number of threads, and they are gathered in one order.
  void run(xfn::Member member) {
    const xfn::Kernels* kernels = xfn::kernels(p.dtype);
    STD_TORCH_CHECK(kernels, "no kernels for XFN_ISA as it is set");
    const int64_t tiles = kernels->tiles(p), heads = p.B * p.G, threads = ts::get_num_threads();
    if (!heads || !tiles) return;
    if (member == xfn::Member::backward || member == xfn::Member::hvp)
      p.chunks = p.turns ? 1 : std::max<int64_t>(1, std::min({(7 + heads) / heads, tiles / 4, (int64_t)4}));
    else
      p.chunks = threads == 1 ? 1 : std::min(tiles, std::max<int64_t>(1, 4 * threads / heads));
    const bool inward = p.dk || p.dv;
    if (!inward || p.chunks == 1) return run(member, heads * p.chunks);
    const Tensor parts = make({heads * p.chunks * (int64_t)p.part() + 64}, ScalarType::Byte);
    p.parts = (char*)parts.mutable_data_ptr();
    p.parts += -(uintptr_t)p.parts & 63;
    run(member, heads * p.chunks);
    run(xfn::Member::gather, heads * ((p.N + 127) / 128));
    p.parts = nullptr;
  }
  void run(xfn::Member member, int64_t tasks) {
    const xfn::Kernels* kernels = xfn::kernels(p.dtype);
    STD_TORCH_CHECK(kernels, "no kernels for XFN_ISA as it is set");
    const int64_t threads = ts::get_num_threads();
    const int64_t workers = std::min(threads, tasks / (p.turns_B * p.turns_G));
    const int64_t size = (int64_t)kernels->scratch(p, member) + 64;
    char near[192 << 10];  // a short call is over before torch's allocator has found its memory
    const bool fits = workers == 1 && size <= (int64_t)sizeof near;
    const Maybe far = fits ? Maybe() : make({workers * size}, ScalarType::Byte);
    char* memory = fits ? near : (char*)far->mutable_data_ptr();
    std::atomic<int64_t> next{0}, worker{0};
    const int64_t turns = p.turns_B * p.turns_G, cuts = tasks / turns;
    const int64_t some = turns * std::clamp<int64_t>(cuts / (threads * 8), 1, 16);  // for one fetches for the next
    const auto work = [&](int64_t, int64_t) {
      char* own = memory + worker++ * size;
      own += -(uintptr_t)own & 63;
      for (int64_t first; (first = next.fetch_add(some)) < tasks;)
        for (int64_t task = first; task < std::min(first + some, tasks); task++) kernels->run(p, member, task, own);
    };
    if (workers == 1)
      work(0, 1);
    else
      ts::parallel_for(0, workers, 1, work);
  }

  // Few queries are tasks by ranges of keys, and what those found is merged.
  void forward() {
    const xfn::Kernels* kernels = xfn::kernels(p.dtype);
    const xfn::Ranges cut = kernels ? kernels->ranges(p) : xfn::Ranges{};
    if (!cut.tasks) return run(xfn::Member::forward);
    const Maybe parts = cut.merges ? Maybe(make({(int64_t)cut.parts}, ScalarType::Byte)) : Maybe();
    if (parts) p.parts = (char*)parts->mutable_data_ptr();
    run(xfn::Member::decode, cut.tasks);
    if (parts) run(xfn::Member::merge, cut.merges);
  }

  // A place for the gradient of the dense bias, in its own shape; examples and heads that share a slice are summed.
  Shape slice;
  Tensor dense(const Tensor& t) {
    const Shape shape(t.sizes().begin(), t.sizes().end());
    const int64_t rank = t.dim() - 3, heads = t.size(-3), pairs = p.B * p.H;
    slice.assign(pairs, 0);
    int64_t repeat = 1, stride = heads;
    for (int64_t i = rank - 1, j = (int64_t)batch.size() - 1; i >= 0; i--, j--) {
      for (int64_t b = 0; t.size(i) != 1 && b < pairs; b++) slice[b] += b / p.H / repeat % batch[j] * stride;
      repeat *= batch[j], stride *= t.size(i);
    }
    for (int64_t b = 0; heads != 1 && b < pairs; b++) slice[b] += b % p.H;
    p.slice = slice.data(), p.slices = stride, p.dense_M = t.size(-2), p.dense_N = t.size(-1);
    const bool full = p.dense_M == p.M && p.dense_N == p.N, shared = heads == p.slices;  // by all examples
    p.alone = full && p.slices == pairs;
    const int64_t turns_B = shared ? p.B : 1, turns_G = heads == 1 ? p.G : 1, cuts = p.B * p.G / (turns_B * turns_G);
    p.turns = full && !p.alone && (shared || p.slices == heads * p.B) && cuts >= 4;  // fewer would leave threads idle
    if (p.turns) p.turns_B = turns_B, p.turns_G = turns_G;
    const bool own = p.alone && t.scalar_type() == q.scalar_type(), wide = q.scalar_type() == ScalarType::Double;
    Tensor sum = make(shape, own ? t.scalar_type() : wide ? ScalarType::Double : ScalarType::Float);
    if (p.turns || p.lo.data || p.hi.data || p.layout.live || !p.M || !p.N || !p.B || !p.H) ts::zero_(sum);
    return sum;
  }
};

// The arguments that every member begins with.
#define OPERANDS                                                                                               \
  const Tensor &q, const Tensor &k, const Tensor &v, const Maybe &dense, const Maybe &slopes, const Maybe &lo, \
      const Maybe &hi, const Maybe &key, const Maybe &blocks, const Maybe &index, const Maybe &words,          \
      const Maybe &spoilt, const Maybe &unsound
#define OUTPUTS(y) const Tensor &y##out, const Tensor &y##lse
#define COTANGENT(y) const Maybe &y##out, const Maybe &y##lse
#define TANGENT(t) \
  const Maybe &t##q, const Maybe &t##k, const Maybe &t##v, const Maybe &t##dense, const Maybe &t##slopes
#define BEGIN(extra)                                                                                                   \
  Call call(q, k, v, scale, threshold);                                                                                \
  auto& p = call.p;                                                                                                    \
  for (const Maybe& t : {Maybe(q), Maybe(k), Maybe(v), dense}) call.meet(t, 3);                                        \
  for (const Maybe& t : {slopes, lo, hi, key}) call.meet(t, 1);                                                        \
  for (const Maybe& t : {blocks, index, words}) call.meet(t, 3);                                                       \
  call.meet(spoilt, 2), call.meet(unsound, 2);                                                                         \
  extra;                                                                                                               \
  call.count();                                                                                                        \
  call.set(p.x.q, q), call.set(p.x.k, k), call.set(p.x.v, v), call.set(p.x.dense, dense),                              \
      call.set(p.x.slopes, slopes, 1);                                                                                 \
  call.set(p.x.spoilt, spoilt), call.set(p.x.unsound, unsound), call.set(p.lo, lo), call.set(p.hi, hi), call.key(key), \
      call.layout(blocks, index, words, size)
#define MEET_Y(y) call.meet(y##out, 3), call.meet(y##lse, 2)
#define MEET_T(t) \
  call.meet(t##q, 3), call.meet(t##k, 3), call.meet(t##v, 3), call.meet(t##dense, 3), call.meet(t##slopes, 1)
#define SET_Y(to, y) call.set(to.out, y##out), call.set(to.lse, y##lse)
#define SET_T(to, t)                                                                              \
  call.set(to.q, t##q), call.set(to.k, t##k), call.set(to.v, t##v), call.set(to.dense, t##dense), \
      call.set(to.slopes, t##slopes, 1)

Pair outward(Call& call, xfn::Member member) {
  auto& p = call.p;
  Tensor out = call.empty({p.M, p.H, p.V}), lse = call.empty({p.H, p.M}, true);
  p.out = out.mutable_data_ptr(), p.lse = lse.mutable_data_ptr();
  member == xfn::Member::forward ? call.forward() : call.run(member);
  return {out, lse, call.broken};
}
Five inward(Call& call, xfn::Member member, const Maybe& bias, int64_t need) {
  auto& p = call.p;
  Tensor dq = need & 1 ? call.empty({p.M, p.H, p.K}) : call.none(),
         dk = need & 2 ? call.empty({p.N, p.G, p.K}) : call.none();
  Tensor dv = need & 4 ? call.empty({p.N, p.G, p.V}) : call.none(),
         slopes = need & 16 ? call.empty({p.H, p.M}, true) : call.none();
  p.dq = need & 1 ? dq.mutable_data_ptr() : nullptr, p.dk = need & 2 ? dk.mutable_data_ptr() : nullptr;
  p.dv = need & 4 ? dv.mutable_data_ptr() : nullptr, p.slopes = need & 16 ? slopes.mutable_data_ptr() : nullptr;
  if (!p.M || !p.H) ts::zero_(dk), ts::zero_(dv);  // no tile will
  Tensor dense = need & 8 ? call.dense(*bias) : call.none();
  if (need & 8 && (p.alone || p.turns)) p.dense = dense.mutable_data_ptr();
  if (need & ~8 || p.dense) call.run(member);
  if (need & 8 && !p.alone && !p.turns && p.M && p.N && p.B && p.H) {
    p.dense = dense.mutable_data_ptr();
    call.run(member == xfn::Member::hvp ? xfn::Member::dense2 : xfn::Member::dense,
             p.slices * (p.dense_M == 1 ? 1 : (p.M + 63) / 64));
  }
  return {dq, dk, dv, dense, slopes, call.broken};
}

Pair forward(OPERANDS, double scale, int64_t threshold, int64_t size) {
  BEGIN((void)0);
  return outward(call, xfn::Member::forward);
}
Four dual(OPERANDS, TANGENT(t_), double scale, int64_t threshold, int64_t size) {
  STD_TORCH_CHECK(!key, "a tangent is not carried along where weights are dropped");
  BEGIN((MEET_T(t_)));
  SET_T(p.u, t_);
  Tensor t_out = call.empty({p.M, p.H, p.V}), t_lse = call.empty({p.H, p.M}, true);
  p.tout = t_out.mutable_data_ptr(), p.tlse = t_lse.mutable_data_ptr();
  auto [out, lse, broken] = outward(call, xfn::Member::dual);
  return {out, lse, t_out, t_lse, broken};
}
Five backward(OPERANDS, OUTPUTS(), COTANGENT(d_), double scale, int64_t threshold, int64_t size, int64_t need) {
  BEGIN((MEET_Y(), MEET_Y(d_)));
  SET_Y(p.y, ), SET_Y(p.dy, d_);
  return inward(call, xfn::Member::backward, dense, need);
}
Pair jvp(OPERANDS, OUTPUTS(), TANGENT(t_), double scale, int64_t threshold, int64_t size) {
  BEGIN((MEET_Y(), MEET_T(t_)));
  SET_Y(p.y, ), SET_T(p.u, t_);
  return outward(call, xfn::Member::jvp);
}
Five hvp(OPERANDS, OUTPUTS(), OUTPUTS(t_), COTANGENT(d_), TANGENT(t_), COTANGENT(td_), double scale, int64_t threshold,
         int64_t size, int64_t need) {
  BEGIN((MEET_Y(), MEET_Y(t_), MEET_Y(d_), MEET_T(t_), MEET_Y(td_)));
  SET_Y(p.y, ), SET_Y(p.uy, t_), SET_Y(p.dy, d_), SET_T(p.u, t_), SET_Y(p.tdy, td_);
  return inward(call, xfn::Member::hvp, dense, need);
}
Pair jvp2(OPERANDS, OUTPUTS(), OUTPUTS(u_), OUTPUTS(w_), TANGENT(u_), TANGENT(w_), double scale, int64_t threshold,
          int64_t size) {
  BEGIN((MEET_Y(), MEET_Y(u_), MEET_Y(w_), MEET_T(u_), MEET_T(w_)));
  SET_Y(p.y, ), SET_Y(p.uy, u_), SET_Y(p.wy, w_), SET_T(p.u, u_), SET_T(p.w, w_);
  return outward(call, xfn::Member::jvp2);
}

// The same two with nothing but q, k, v and bounds, for half the time of a short call goes to its arguments; and whether
// all three gradients are needed, and in their operands' shapes.
Pair bare(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& lo, const Maybe& hi, double scale) {
  const Maybe none;
  return forward(q, k, v, none, none, lo, hi, none, none, none, none, none, none, scale, 0, 0);
}
std::tuple<Tensor, Tensor, Tensor, bool, bool> bare_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             const Maybe& lo, const Maybe& hi, OUTPUTS(), COTANGENT(d_),
                                                             double scale, int64_t need) {
  const Maybe none;
  auto [dq, dk, dv, dense, slopes, broken] = backward(q, k, v, none, none, lo, hi, none, none, none, none, none, none,
                                                      out, lse, d_out, d_lse, scale, 0, 0, need);
  const auto alike = [](const Tensor& a, const Tensor& b) { return a.dim() == b.dim() && a.numel() == b.numel(); };
  return {dq, dk, dv, broken, alike(dq, q) && alike(dk, k) && alike(dv, v)};
}

#define S_OPERANDS \
  "Tensor q, Tensor k, Tensor v, Tensor? dense, Tensor? slopes, Tensor? lo, Tensor? hi, Tensor? key, Tensor? blocks, Tensor? index, Tensor? words, Tensor? spoilt, Tensor? unsound"
#define S_OUTPUTS(y) ", Tensor " y "out, Tensor " y "lse"
#define S_COTANGENT(y) ", Tensor? " y "out, Tensor? " y "lse"
#define S_TANGENT(t) ", Tensor? " t "q, Tensor? " t "k, Tensor? " t "v, Tensor? " t "dense, Tensor? " t "slopes"
#define S_END ", float scale, int threshold, int size"
#define S_OUTWARD ") -> (Tensor, Tensor, bool)"
#define S_INWARD ", int need) -> (Tensor, Tensor, Tensor, Tensor, Tensor, bool)"

}  // namespace

STABLE_TORCH_LIBRARY(xfn_cpu, m) {
  m.def("attention_forward(" S_OPERANDS S_END S_OUTWARD);
  m.def("attention_bare(Tensor q, Tensor k, Tensor v, Tensor? lo, Tensor? hi, float scale" S_OUTWARD);
  m.def("attention_bare_backward(Tensor q, Tensor k, Tensor v, Tensor? lo, Tensor? hi" S_OUTPUTS("")
            S_COTANGENT("d_") ", float scale, int need) -> (Tensor, Tensor, Tensor, bool, bool)");
  m.def("attention_backward(" S_OPERANDS S_OUTPUTS("") S_COTANGENT("d_") S_END S_INWARD);
  m.def("attention_dual(" S_OPERANDS S_TANGENT("t_") S_END ") -> (Tensor, Tensor, Tensor, Tensor, bool)");
  m.def("attention_jvp(" S_OPERANDS S_OUTPUTS("") S_TANGENT("t_") S_END S_OUTWARD);
  m.def("attention_hvp(" S_OPERANDS S_OUTPUTS("") S_OUTPUTS("ty_") S_COTANGENT("d_") S_TANGENT("t_") S_COTANGENT("td_")
            S_END S_INWARD);
  m.def("attention_jvp2(" S_OPERANDS S_OUTPUTS("") S_OUTPUTS("uy_") S_OUTPUTS("wy_") S_TANGENT("u_") S_TANGENT("w_")
            S_END S_OUTWARD);
}
STABLE_TORCH_LIBRARY_IMPL(xfn_cpu, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&forward));
  m.impl("attention_bare", TORCH_BOX(&bare));
  m.impl("attention_bare_backward", TORCH_BOX(&bare_backward));
  m.impl("attention_backward", TORCH_BOX(&backward));
  m.impl("attention_dual", TORCH_BOX(&dual));
  m.impl("attention_jvp", TORCH_BOX(&jvp));
  m.impl("attention_hvp", TORCH_BOX(&hvp));
  m.impl("attention_jvp2", TORCH_BOX(&jvp2));
}

extern "C" __attribute__((visibility("default"))) const char* xfn_isa() { return xfn::isa(); }
extern "C" __attribute__((visibility("default"))) const char* xfn_version() { return XFN_VERSION; }
