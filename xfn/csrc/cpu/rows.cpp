// Ops on rows as torch ops: tensors to a RowProblem, its tasks to torch's threads.
#include "isa.h"
#include "product.h"
#include "row.h"
#include "tensors.h"

namespace {

using xfn::RowMember;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t FAR = 4 << 20, LATER = 16 << 20;  // bytes of a result that goes past the caches; if it is kept

// x is [..., E], or [..., heads, K] with `inner` two; the first `outer` of its dims are parts, those up to `rank` rows.
// What rows share has E numbers, or E for each part.
struct Call {
  xfn::RowProblem p{};
  const Tensor& x;
  const int64_t outer, rank;
  std::vector<Tensor> alive;

  Call(const Tensor& x, int64_t outer, int64_t inner = 1) : x(x), outer(outer), rank(x.dim() - inner) {
    STD_TORCH_CHECK(0 <= outer && outer <= rank, "x is [..., E], of which the first dims are parts");
    p.P = p.R = 1, p.heads = inner > 1 ? x.size(rank) : 1, p.E = p.heads * x.size(-1);
    for (int64_t i = 0; i < rank; i++) (i < outer ? p.P : p.R) *= x.size(i);
    // As many rows as are worth a task, and at most 64 tasks a part: by shape alone, for sums follow the tasks.
    p.chunk = std::max({(int64_t)1, 32768 / std::max<int64_t>(1, p.E), (p.R + 63) / 64});
    p.far = bytes() >= FAR;
    alive.reserve(8);
  }

  int64_t bytes() const { return p.P * p.R * p.E * x.element_size(); }
  // From one of dims [first, last) that are walked as one to the next, or −1: they cannot be.
  static int64_t step(const Tensor& t, int64_t first, int64_t last) {
    int64_t found = 0, next = -1;
    for (int64_t i = last; i-- > first;) {
      if (t.size(i) == 1) continue;
      if (next < 0)
        found = t.stride(i);
      else if (t.stride(i) != next)
        return -1;
      next = t.stride(i) * t.size(i);
    }
    return found;
  }
  void set(xfn::Grid& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == x.scalar_type() && from->dim() == x.dim(), "rows share x's dtype and shape");
    for (int64_t i = 0; i < x.dim(); i++) STD_TORCH_CHECK(from->size(i) == x.size(i), "rows share x's dtype and shape");
    place(to, *from);
  }
  // What each row has of its own beside x, [..., pairs], or what each row of all parts has, [R, pairs].
  void table(xfn::Grid& to, const Tensor& from) {
    const int64_t shared = rank + 1 - from.dim();
    STD_TORCH_CHECK(from.scalar_type() == wide(x.scalar_type()) && (!shared || (shared == outer && from.dim() == 2)),
                    "tables are [..., pairs], or [R, pairs]");
    for (int64_t i = shared; i < rank; i++) STD_TORCH_CHECK(from.size(i - shared) == x.size(i), "tables have x's rows");
    if (!shared) return place(to, from);
    const Tensor& t = alive.emplace_back(from.stride(1) == 1 || from.size(1) < 2 ? from : packed(from));
    to = {t.const_data_ptr(), 0, t.stride(0)};
  }
  void place(xfn::Grid& to, const Tensor& from) {
    const bool good =
        (from.stride(-1) == 1 || from.size(-1) < 2) && step(from, 0, outer) >= 0 && step(from, outer, rank) >= 0;
    const Tensor& t = alive.emplace_back(good ? from : packed(from));
    to = {t.const_data_ptr(), step(t, 0, outer), step(t, outer, rank), rank + 1 < t.dim() ? t.stride(rank) : 0};
  }
  void share(xfn::Grid& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->numel() == p.E || from->numel() == p.P * p.E, "what rows share has E numbers, or P times E");
    const Tensor wider = ts::to(*from, wide(x.scalar_type()));
    const Tensor& t = alive.emplace_back(wider.is_contiguous() ? wider : packed(wider));
    to = {t.const_data_ptr(), t.numel() == p.E ? 0 : p.E, 0};
  }
  void bound(xfn::Grid& to, const Maybe& from) {
    if (!from) return;
    STD_TORCH_CHECK(from->scalar_type() == ScalarType::Long && from->dim() == 2 && from->size(1) == p.R &&
                        (from->size(0) == 1 || from->size(0) == p.P),
                    "bounds are int64 [P, R]");
    to = {from->const_data_ptr(), step(*from, 0, 1), step(*from, 1, 2)};
  }
  void drop(const Maybe& key, int64_t threshold, int64_t activation) {
    STD_TORCH_CHECK(activation >= 0 && activation <= (int64_t)xfn::Activation::tanh, "no such activation");
    p.activation = (xfn::Activation)activation, p.threshold = (uint32_t)threshold;
    p.grow = 65536. / (65536 - (double)threshold);
    if (!key) return;
    STD_TORCH_CHECK(key->scalar_type() == ScalarType::Long && (key->numel() == 2 || key->numel() == 2 * p.P),
                    "keys are int64 [P, 2]");
    const Tensor& t = alive.emplace_back(key->is_contiguous() ? *key : packed(*key));
    p.key = (const int64_t*)t.const_data_ptr(), p.key_part = t.numel() == 2 ? 0 : 2;
  }
  void gate(const Tensor& gate, const Tensor& up, const Maybe& gate_bias, const Maybe& up_bias) {
    set(p.x, gate), set(p.up, up), share(p.bias, gate_bias), share(p.up_bias, up_bias);
  }
  void turn(const Tensor& x, const Tensor& cos, const Tensor& sin, bool adjacent) {
    p.pairs = cos.size(-1), p.adjacent = adjacent;
    STD_TORCH_CHECK(2 * p.pairs <= x.size(-1) && sin.size(-1) == p.pairs, "there are more pairs than features");
    set(p.x, x), table(p.cos, cos), table(p.sin, sin);
  }

  Tensor out(bool needed = true) { return like(x, p.out, needed); }
  static Tensor like(const Tensor& x, void*& to, bool needed) {
    Tensor t = make(needed ? shape_of(x) : Shape{0}, x.scalar_type());
    to = needed ? t.mutable_data_ptr() : nullptr;
    return t;
  }
  // A line for each task of a part, and later their sum, like what they are the gradient of.
  Tensor lines(void*& to, bool needed) {
    Tensor t = make(needed ? Shape{p.P, p.tasks(), p.E} : Shape{0}, wide(x.scalar_type()));
    to = needed ? t.mutable_data_ptr() : nullptr;
    return t;
  }
  template <class S> void add(const Tensor& lines, Tensor& to) const {
    const S* from = (const S*)lines.const_data_ptr();
    S* sum = (S*)to.mutable_data_ptr();
    std::fill_n(sum, p.P * p.E, (S)0);
    for (int64_t part = 0; part < p.P; part++, sum += p.E)
      for (int64_t task = 0; task < p.tasks(); task++, from += p.E)
        for (int64_t e = 0; e < p.E; e++) sum[e] += from[e];
  }
  Tensor summed(const Tensor& lines, const Maybe& like) const {
    if (lines.dim() == 1 || !like) return lines;
    STD_TORCH_CHECK(like->numel() == p.P * p.E, "a gradient has a line for each part");
    Tensor to = make(shape_of(*like), lines.scalar_type());
    to.scalar_type() == ScalarType::Double ? add<double>(lines, to) : add<float>(lines, to);
    return ts::to(to, like->scalar_type());
  }

  void run(RowMember member) {
    const xfn::Kernels* kernels = xfn::kernels(dtype_of(x));
    STD_TORCH_CHECK(kernels, "no kernels for XFN_ISA as it is set");
    if (!p.P || !p.R || !p.E) return;
    const int64_t size = (int64_t)kernels->rows(p, member, 0, nullptr);
    const auto work = [&](int64_t first, int64_t last) {
      char near[64 << 10];
      const bool fits = size + 64 <= (int64_t)sizeof near;
      const Maybe far = fits ? Maybe() : make({size + 64}, ScalarType::Byte);
      char* memory = fits ? near : (char*)far->mutable_data_ptr();
      memory += -(uintptr_t)memory & 63;
      for (int64_t task = first; task < last; task++) kernels->rows(p, member, task, memory);
    };
    const int64_t tasks = p.P * p.tasks();
    tasks == 1 ? work(0, 1) : ts::parallel_for(0, tasks, 1, work);
  }
};

// Beside y the mean and r of each row, for the backward pass, where that was asked for; else nothing.
Two norm(const Tensor& x, const Maybe& weight, const Maybe& bias, int64_t outer, double eps, bool centered, bool keep) {
  Call call(x, outer);
  auto& p = call.p;
  call.set(p.x, x), call.share(p.weight, weight), call.share(p.bias, bias);
  p.eps = eps, p.centered = centered;
  Tensor y = call.out(), moments = make(keep ? Shape{p.P, p.R, 2} : Shape{0}, wide(x.scalar_type()));
  p.moments = keep ? moments.mutable_data_ptr() : nullptr;
  call.run(RowMember::norm);
  return {y, moments};
}

// need: bit 0 for dx, 1 for dweight, 2 for dbias; what is not needed is empty. Moments that were kept change no bit.
Three norm_backward(const Tensor& x, const Maybe& weight, const Maybe& bias, const Tensor& dy, const Maybe& moments,
                    int64_t outer, double eps, bool centered, int64_t need) {
  Call call(x, outer);
  auto& p = call.p;
  call.set(p.x, x), call.share(p.weight, weight), call.set(p.dy, dy);
  p.eps = eps, p.centered = centered;
  if (moments) {
    STD_TORCH_CHECK(moments->scalar_type() == wide(x.scalar_type()) && moments->numel() == p.P * p.R * 2,
                    "moments are those that norm kept");
    const Tensor& t = call.alive.emplace_back(moments->is_contiguous() ? *moments : packed(*moments));
    p.moments = const_cast<void*>(t.const_data_ptr());
  }
  Tensor dx = call.out(need & 1), dweight = call.lines(p.dweight, need & 2), dbias = call.lines(p.dbias, need & 4);
  call.run(RowMember::norm_back);
  return {dx, call.summed(dweight, weight), call.summed(dbias, bias)};
}

Tensor softmax(const Tensor& x, const Maybe& lo, const Maybe& hi, int64_t outer, bool logarithm) {
  Call call(x, outer);
  call.set(call.p.x, x), call.bound(call.p.lo, lo), call.bound(call.p.hi, hi);
  call.p.logarithm = logarithm, call.p.far = call.bytes() >= LATER;  // a backward pass reads it
  Tensor y = call.out();
  call.run(RowMember::softmax);
  return y;
}

// x: of the logarithm alone.
Tensor softmax_backward(const Maybe& x, const Maybe& lo, const Maybe& hi, const Tensor& y, const Tensor& dy,
                        int64_t outer, bool logarithm) {
  STD_TORCH_CHECK(x || !logarithm, "the gradient of a logarithm asks for x");
  Call call(y, outer);
  call.set(call.p.x, x), call.set(call.p.y, y), call.set(call.p.dy, dy);
  call.bound(call.p.lo, lo), call.bound(call.p.hi, hi);
  call.p.logarithm = logarithm;
  Tensor dx = call.out();
  call.run(RowMember::softmax_back);
  return dx;
}

Tensor dropout(const Tensor& x, const Maybe& bias, const Maybe& residual, const Maybe& key, int64_t outer,
               int64_t threshold, int64_t activation) {
  Call call(x, outer);
  call.set(call.p.x, x), call.share(call.p.bias, bias), call.set(call.p.residual, residual);
  call.drop(key, threshold, activation);
  Tensor y = call.out();
  call.run(RowMember::drop);
  return y;
}

// need: bit 0 for dx, 1 for dbias.
Two dropout_backward(const Tensor& x, const Maybe& bias, const Maybe& key, const Tensor& dy, int64_t outer,
                     int64_t threshold, int64_t activation, int64_t need) {
  Call call(x, outer);
  call.set(call.p.x, x), call.share(call.p.bias, bias), call.set(call.p.dy, dy);
  call.drop(key, threshold, activation);
  Tensor dx = call.out(need & 1), dbias = call.lines(call.p.dbias, need & 2);
  call.run(RowMember::drop_back);
  return {dx, call.summed(dbias, bias)};
}

Tensor swiglu(const Tensor& gate, const Tensor& up, const Maybe& gate_bias, const Maybe& up_bias, const Maybe& key,
              int64_t outer, int64_t threshold) {
  Call call(gate, outer);
  call.gate(gate, up, gate_bias, up_bias), call.drop(key, threshold, 0);
  Tensor y = call.out();
  call.run(RowMember::gate);
  return y;
}

// need: a bit each for dgate, dup and those of the biases.
Four swiglu_backward(const Tensor& gate, const Tensor& up, const Maybe& gate_bias, const Maybe& up_bias,
                     const Maybe& key, const Tensor& dy, int64_t outer, int64_t threshold, int64_t need) {
  Call call(gate, outer);
  auto& p = call.p;
  call.gate(gate, up, gate_bias, up_bias), call.drop(key, threshold, 0), call.set(p.dy, dy);
  Tensor dgate = call.out(need & 1), dup = Call::like(up, p.dup, need & 2);
  Tensor dgate_bias = call.lines(p.dbias, need & 4), dup_bias = call.lines(p.dup_bias, need & 8);
  call.run(RowMember::gate_back);
  return {dgate, dup, call.summed(dgate_bias, gate_bias), call.summed(dup_bias, up_bias)};
}

// x is [..., M, heads, K], cos and sin are [..., M, pairs], or [M, pairs] where no gradient of theirs is needed.
Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool adjacent) {
  Call call(x, x.dim() - 3, 2);
  call.turn(x, cos, sin, adjacent);
  Tensor y = call.out();
  call.run(RowMember::turn);
  return y;
}

// need: a bit each for dx, dcos and dsin.
Three rotary_backward(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& dy, bool adjacent,
                      int64_t need) {
  STD_TORCH_CHECK(!(need & 6) || cos.dim() == x.dim() - 1, "tables whose gradient is needed are [..., pairs]");
  Call call(x, x.dim() - 3, 2);
  auto& p = call.p;
  call.turn(x, cos, sin, adjacent), call.set(p.dy, dy);
  Tensor dx = call.out(need & 1), dcos = Call::like(cos, p.dcos, need & 2), dsin = Call::like(sin, p.dsin, need & 4);
  call.run(RowMember::turn_back);
  for (Tensor* t : {&dcos, &dsin})
    if (!p.heads) std::memset(t->mutable_data_ptr(), 0, t->numel() * t->element_size());  // a sum of none
  return {dx, dcos, dsin};
}

// a b and, if there is one, a line added to each row; a [M, K] and b [K, N] in float32, transposed or not.
Tensor product(const Tensor& a, const Tensor& b, const Maybe& line) {
  xfn::Product p{};
  p.M = a.size(0), p.N = b.size(1), p.K = a.size(1), p.a = a.const_data_ptr(), p.b = b.const_data_ptr();
  p.a_row = a.stride(0), p.a_step = a.stride(1), p.b_step = b.stride(0), p.b_column = b.stride(1);
  const auto floats = [](const Tensor& t) { return t.scalar_type() == ScalarType::Float; };
  STD_TORCH_CHECK(floats(a) && floats(b) && a.dim() == 2 && b.dim() == 2 && b.size(0) == p.K, "a is [M, K], b [K, N]");
  STD_TORCH_CHECK(p.a_row == 1 || p.a_step == 1, "a's rows or columns are contiguous");
  STD_TORCH_CHECK(p.N % 16 == 0 && (p.b_column == 1 || (p.b_step == 1 && p.K % 16 == 0)), "b is made of whole vectors");
  if (line) {
    STD_TORCH_CHECK(floats(*line) && line->dim() == 1 && line->size(0) == p.N && line->is_contiguous(),
                    "a line is [N]");
    p.line = line->const_data_ptr();
  }
  const xfn::Kernels* kernels = xfn::kernels(xfn::Dtype::f32);
  STD_TORCH_CHECK(kernels, "no kernels for XFN_ISA as it is set");
  Tensor c = make({p.M, p.N}, ScalarType::Float);
  if (!p.M || !p.N) return c;
  p.c = c.mutable_data_ptr();
  // Rows are cut where columns are too few for the threads; no sum is.
  const int64_t threads = ts::get_num_threads(),
                cuts = threads == 1 ? 1 : (4 * threads + p.across()) / (p.across() + 1);
  p.height = std::max<int64_t>(96, ((p.M + cuts - 1) / cuts + 95) / 96 * 96);
  const int64_t size = (int64_t)kernels->product(p, 0, nullptr) + 64;
  const auto work = [&](int64_t first, int64_t last) {
    char near[192 << 10];
    const bool fits = size <= (int64_t)sizeof near;
    const Maybe far = fits ? Maybe() : make({size}, ScalarType::Byte);
    char* memory = fits ? near : (char*)far->mutable_data_ptr();
    memory += -(uintptr_t)memory & 63;
    for (int64_t task = first; task < last; task++) kernels->product(p, task, memory);
  };
  p.tasks() == 1 ? work(0, 1) : ts::parallel_for(0, p.tasks(), 1, work);
  return c;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(xfn_cpu, m) {
  m.def(
      "norm(Tensor x, Tensor? weight, Tensor? bias, int outer, float eps, bool centered, bool keep=False) -> "
      "(Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor x, Tensor? weight, Tensor? bias, Tensor dy, Tensor? moments, int outer, float eps, "
      "bool centered, int need) -> (Tensor, Tensor, Tensor)");
  m.def("softmax(Tensor x, Tensor? lo, Tensor? hi, int outer, bool logarithm) -> Tensor");
  m.def(
      "softmax_backward(Tensor? x, Tensor? lo, Tensor? hi, Tensor y, Tensor dy, int outer, bool logarithm) -> "
      "Tensor");
  m.def(
      "dropout(Tensor x, Tensor? bias, Tensor? residual, Tensor? key, int outer, int threshold, int activation) -> "
      "Tensor");
  m.def(
      "dropout_backward(Tensor x, Tensor? bias, Tensor? key, Tensor dy, int outer, int threshold, int activation, int "
      "need) -> (Tensor, Tensor)");
  m.def(
      "swiglu(Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, Tensor? key, int outer, int threshold) -> "
      "Tensor");
  m.def(
      "swiglu_backward(Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, Tensor? key, Tensor dy, int outer, "
      "int threshold, int need) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("product(Tensor a, Tensor b, Tensor? line) -> Tensor");
  m.def("multiplies() -> bool");
  m.def("rotary(Tensor x, Tensor cos, Tensor sin, bool adjacent) -> Tensor");
  m.def(
      "rotary_backward(Tensor x, Tensor cos, Tensor sin, Tensor dy, bool adjacent, int need) -> (Tensor, Tensor, "
      "Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(xfn_cpu, CPU, m) {
  m.impl("norm", TORCH_BOX(&norm));
  m.impl("norm_backward", TORCH_BOX(&norm_backward));
  m.impl("softmax", TORCH_BOX(&softmax));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward));
  m.impl("dropout", TORCH_BOX(&dropout));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward));
  m.impl("swiglu", TORCH_BOX(&swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
  m.impl("product", TORCH_BOX(&product));
  m.impl("rotary", TORCH_BOX(&rotary));
  m.impl("rotary_backward", TORCH_BOX(&rotary_backward));
}
STABLE_TORCH_LIBRARY_IMPL(xfn_cpu, CompositeExplicitAutograd, m) { m.impl("multiplies", TORCH_BOX(&xfn::multiplies)); }
