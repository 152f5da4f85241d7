// The attention family as torch ops: tensors to a Problem, its tasks to torch's threads. Through torch's stable ABI, so
// that one library serves every release from 2.11 on and every Python.
#include "isa.h"
#include "tensors.h"

namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor, bool>;

// Some tasks of a member, on torch's threads.
void share(const xfn::Problem& p, xfn::Member member, int64_t tasks) {
  const xfn::Kernels* kernels = xfn::kernels(p.dtype);
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

// A task for each key head, cut where there are few. Where that touches a sum, it is cut into chunks that do not
// depend on the number of threads, and they are gathered in one order.
void share(xfn::Problem& p, xfn::Member member) {
  const int64_t tiles = xfn::kernels(p.dtype)->tiles(p), heads = p.B * p.G, threads = ts::get_num_threads();
  if (!heads || !tiles) return;
  if (member == xfn::Member::backward || member == xfn::Member::hvp)
    p.chunks = p.turns ? 1 : std::max<int64_t>(1, std::min({(7 + heads) / heads, tiles / 4, (int64_t)4}));
  else
    p.chunks = threads == 1 ? 1 : std::min(tiles, std::max<int64_t>(1, 4 * threads / heads));
  const bool inward = p.dk || p.dv;
  if (!inward || p.chunks == 1) return share(p, member, heads * p.chunks);
  const Tensor parts = make({heads * p.chunks * (int64_t)p.part() + 64}, ScalarType::Byte);
  p.parts = (char*)parts.mutable_data_ptr();
  p.parts += -(uintptr_t)p.parts & 63;
  share(p, member, heads * p.chunks);
  share(p, xfn::Member::gather, heads * ((p.N + 127) / 128));
  p.parts = nullptr;
}

// Few queries are tasks by ranges of keys, and what those found is merged.
void share(xfn::Problem& p, const xfn::Ranges& cut) {
  const Maybe parts = cut.merges ? Maybe(make({(int64_t)cut.parts}, ScalarType::Byte)) : Maybe();
  if (parts) p.parts = (char*)parts->mutable_data_ptr();
  share(p, xfn::Member::decode, cut.tasks);
  if (parts) share(p, xfn::Member::merge, cut.merges);
}

void run(xfn::Problem& p, xfn::Member member, int64_t tasks = -1) {
  const xfn::Kernels* kernels = xfn::kernels(p.dtype);
  STD_TORCH_CHECK(kernels, "no kernels for XFN_ISA as it is set");
  if (tasks >= 0) return share(p, member, tasks);
  const xfn::Ranges cut = member == xfn::Member::forward ? kernels->ranges(p) : xfn::Ranges{};
  cut.tasks ? share(p, cut) : share(p, member);
}

// Where `run` is, for the library beside this one; 0 where that one means another problem.
int64_t entry(int64_t size) {
  void (*const here)(xfn::Problem&, xfn::Member, int64_t) = &run;
  return size == sizeof(xfn::Problem) ? (int64_t)here : 0;
}

}  // namespace

#include "call.h"

namespace {

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
  call.meet(q, 3), call.meet(k, 3), call.meet(v, 3), call.meet(dense, 3);                                              \
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
  m.def("attention_entry(int size) -> int");
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
STABLE_TORCH_LIBRARY_IMPL(xfn_cpu, CompositeExplicitAutograd, m) { m.impl("attention_entry", TORCH_BOX(&entry)); }

extern "C" __attribute__((visibility("default"))) const char* xfn_isa() { return xfn::isa(); }
extern "C" __attribute__((visibility("default"))) const char* xfn_version() { return XFN_VERSION; }
