// discretization_loss on CPUs: da2s_fast/ops/discretization_loss.py defines the operator and says
// what it computes. A few hundred numbers, so one thread; in double, whatever the element type.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "operators.h"
#include "tensors.h"

namespace da2s_fast {
namespace {

constexpr double kCountWeight = 0.2;

// Returns the entropy of softmax(x) and writes its gradient with respect to x.
double entropy(const std::vector<double>& x, std::vector<double>& gradient) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const double value : x) sum += std::exp(value - largest);
  const double log_sum = largest + std::log(sum);
  double result = 0;
  for (const double value : x) result -= std::exp(value - log_sum) * (value - log_sum);
  gradient.resize(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    gradient[i] = -std::exp(x[i] - log_sum) * (x[i] - log_sum + result);
  return result;
}

// The entropies of one alpha's rows.
template <class T>
double operation_entropies(const T* alpha, int64_t edges, int64_t operations, T* grad_alpha) {
  std::vector<double> strengths(operations), gradient;
  double total = 0;
  for (int64_t e = 0; e < edges; ++e, alpha += operations, grad_alpha += operations) {
    for (int64_t o = 0; o < operations; ++o) {
      const double x = 2 * double{alpha[o]};
      strengths[o] = x < -1 ? x * x * x : x;
    }
    total += entropy(strengths, gradient);
    for (int64_t o = 0; o < operations; ++o) {
      const double x = 2 * double{alpha[o]};
      grad_alpha[o] = static_cast<T>(gradient[o] * (x < -1 ? 6 * x * x : 2));
    }
  }
  return total;
}

// The edge loss of one node.
template <class T>
double node_loss(const T* beta, int64_t edges, int64_t keep, T* grad_beta) {
  std::vector<double> strengths(edges), gradient;
  double count = 0;
  for (int64_t e = 0; e < edges; ++e) {
    strengths[e] = beta[e] >= 1 ? 1 : double{beta[e]};
    if (beta[e] > 0) count += strengths[e];
  }
  const double excess = count - static_cast<double>(keep);
  const double loss = kCountWeight * excess * excess + entropy(strengths, gradient);
  for (int64_t e = 0; e < edges; ++e) {
    const double slope = gradient[e] + (beta[e] > 0 ? 2 * kCountWeight * excess : 0);
    grad_beta[e] = static_cast<T>(beta[e] >= 1 ? 0 : slope);
  }
  return loss;
}

template <class T>
double edge_losses(const T* beta, const std::vector<int64_t>& edges_per_node, const int64_t* keep,
                   T* grad_beta) {
  double total = 0;
  for (size_t node = 0; node < edges_per_node.size(); ++node) {
    const int64_t edges = edges_per_node[node];
    if (node == 0 && keep[node] == edges)
      std::fill_n(grad_beta, edges, T{0});
    else
      total += node_loss(beta, edges, keep[node], grad_beta);
    beta += edges;
    grad_beta += edges;
  }
  return total;
}

void check(const std::vector<Tensor>& alphas, const std::vector<Tensor>& betas,
           const std::vector<int64_t>& edges_per_node, const std::vector<int64_t>& keep) {
  STD_TORCH_CHECK(!alphas.empty(), "discretization_loss needs alphas");
  const ScalarType dtype = compute_dtype(alphas[0]);
  const int64_t edges = std::accumulate(edges_per_node.begin(), edges_per_node.end(), int64_t{0});
  for (const Tensor& alpha : alphas) {
    check_dtype(alpha, dtype, "discretization_loss's alphas");
    STD_TORCH_CHECK(alpha.dim() == 2 && alpha.size(0) == edges && alpha.size(1) > 0,
                    "discretization_loss needs alphas of one row per edge");
  }
  for (const Tensor& beta : betas) {
    check_dtype(beta, dtype, "discretization_loss's betas");
    STD_TORCH_CHECK(beta.dim() == 1 && beta.numel() == edges,
                    "discretization_loss needs betas of one number per edge");
  }
  for (const int64_t count : edges_per_node)
    STD_TORCH_CHECK(count > 0, "discretization_loss needs nodes with edges");
  STD_TORCH_CHECK(betas.empty() || keep.size() == betas.size() * edges_per_node.size(),
                  "discretization_loss needs one number of edges to keep per kind and node");
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>> discretization_loss(
    std::vector<Tensor> alphas, std::vector<Tensor> betas, std::vector<int64_t> edges_per_node,
    std::vector<int64_t> keep) {
  check(alphas, betas, edges_per_node, keep);
  const ScalarType dtype = alphas[0].scalar_type();
  Tensor operation_entropy = empty({}, dtype), edge_loss = empty({}, dtype);
  std::vector<Tensor> grad_alphas, grad_betas;
  for (const Tensor& alpha : alphas) grad_alphas.push_back(empty(alpha, false));
  for (const Tensor& beta : betas) grad_betas.push_back(empty(beta, false));
  const auto run = [&](auto element) {
    using T = decltype(element);
    const Pointers<T> alpha(alphas, false), beta(betas, false);
    double operations = 0, edges = 0;
    for (size_t kind = 0; kind < alphas.size(); ++kind)
      operations += operation_entropies(alpha[kind], alphas[kind].size(0), alphas[kind].size(1),
                                        data<T>(grad_alphas[kind]));
    for (size_t kind = 0; kind < betas.size(); ++kind)
      edges += edge_losses(beta[kind], edges_per_node, &keep[kind * edges_per_node.size()],
                           data<T>(grad_betas[kind]));
    *data<T>(operation_entropy) = static_cast<T>(operations);
    *data<T>(edge_loss) = static_cast<T>(edges);
  };
  dtype == ScalarType::Double ? run(double{}) : run(float{});
  return {operation_entropy, edge_loss, grad_alphas, grad_betas};
}

}  // namespace

void register_discretization_loss(torch::stable::detail::StableLibrary& library) {
  library.impl("discretization_loss", TORCH_BOX(&discretization_loss));
}

}  // namespace da2s_fast
