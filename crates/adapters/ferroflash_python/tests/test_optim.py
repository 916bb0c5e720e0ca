"""AdamW and the norm of gradients: on arrays of NumPy and tensors of PyTorch against a float64 reference, and everything that is refused.

On the CPU, unless FERROFLASH_TEST_DEVICE names another device for PyTorch, `cuda`.
"""

import copy
import os
import unittest
import warnings

import numpy as np

import ferroflash
from ferroflash import optim
from reference import check_close, round_to

try:
    import torch
except ImportError:
    torch = None

DTYPES = {"f16": np.float16, "f32": np.float32}
DEVICE = os.environ.get("FERROFLASH_TEST_DEVICE", "cpu")
SHAPES = [(3, 5), (1030,), (7,), (0, 4)]
OPTIONS = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def setUpModule():
    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)


def values(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def stepped(w, gradients, number, lr, betas, eps, weight_decay):
    """`(w, m, v)` after a step for each gradient, in this precision, by algorithm 2 of Loshchilov and Hutter's paper."""
    w, m, v = w.astype(number), number(0), number(0)
    beta1, beta2 = (number(beta) for beta in betas)
    for t, g in enumerate(gradients, 1):
        g = g.astype(number)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / number(1 - betas[0] ** t), v / number(1 - betas[1] ** t)
        w = w - number(lr) * (m_hat / (np.sqrt(v_hat) + number(eps)) + number(weight_decay) * w)
    return w, m, v


def check_steps(test, found, start, gradients, precisions, **options):
    """Fails the test where w, a moment or what else is found is outside the bound."""
    exact, rounded = (stepped(start, gradients, number, **options) for number in (np.float64, np.float32))
    for name, ours, truth, theirs, of in zip(("w", "m", "v"), found, exact, rounded, precisions):
        check_close(test, name, ours, truth, round_to(theirs, of))


class Arrays(unittest.TestCase):
    def test_steps(self):
        for precision, dtype in DTYPES.items():
            for of_gradients in (dtype, np.float32):
                with self.subTest(dtype=precision, gradients=of_gradients):
                    starts = [values(shape, seed, dtype) for seed, shape in enumerate(SHAPES)]
                    parameters = [start.copy() for start in starts]
                    # A parameter of 16 bits without a master is rounded in each step; of several, the masters are what is compared.
                    masters = None if precision == "f32" else [start.astype(np.float32) for start in starts]
                    moments, second_moments = ([np.zeros(shape, np.float32) for shape in SHAPES] for _ in range(2))
                    gradients = [[values(shape, 10 * t + seed, of_gradients) for seed, shape in enumerate(SHAPES)] for t in range(1, 4)]
                    for number, of_step in enumerate(gradients, 1):
                        optim.step(parameters, of_step, moments, second_moments, number, masters=masters, **OPTIONS)
                    for index, start in enumerate(starts):
                        of_tensor = [of_step[index] for of_step in gradients]
                        w = parameters[index] if masters is None else masters[index]
                        check_steps(self, (w, moments[index], second_moments[index]), start, of_tensor, ("f32",) * 3, **OPTIONS)
                        if masters is not None:
                            np.testing.assert_array_equal(parameters[index], masters[index].astype(dtype))

    def test_one_step_without_masters(self):
        start, gradient = values(100, 1, np.float16), values(100, 2, np.float16)
        w, m, v = start.copy(), np.zeros(100, np.float32), np.zeros(100, np.float32)
        optim.step([w], [gradient], [m], [v], 1, **OPTIONS)
        check_steps(self, (w, m, v), start, [gradient], ("f16", "f32", "f32"), **OPTIONS)

    def test_factors_on_gradients(self):
        start, gradient = values(100, 1), values(100, 2)
        w, m, v = start.copy(), np.zeros(100, np.float32), np.zeros(100, np.float32)
        optim.step([w], [gradient], [m], [v], 1, gradient_scale=0.5, gradient_factor=np.float32([0.25]), **OPTIONS)
        check_steps(self, (w, m, v), start, [gradient / 8], ("f32",) * 3, **OPTIONS)

    def test_norm(self):
        gradients = [values(shape, seed, dtype) for seed, shape in enumerate(SHAPES) for dtype in DTYPES.values()]
        exact = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients))
        for max_norm, coefficient in ((None, 1.0), (exact / 4, 0.25), (2 * exact, 1.0)):
            found = optim.norm(gradients, max_norm=max_norm)
            np.testing.assert_allclose(found, [exact, coefficient], rtol=1e-5)
        np.testing.assert_allclose(optim.norm(gradients, gradient_scale=0.5)[0], exact / 2, rtol=1e-5)
        given = np.empty(2, np.float32)
        self.assertIs(optim.norm(gradients, out=given), given)

    def test_numbers_on_the_device(self):
        """A rate and steps that arrays hold are those of the call; a step below 1 is taken for 1. Numbers of NumPy are numbers."""
        rate = OPTIONS["lr"]
        for lr, numbers in (
            (np.float32([rate]), np.int32([1, 2, 3])),
            (rate, np.int32([-5, 2, 3])),
            (np.float32([rate]), (1, 2, 3)),
            (np.float32(rate), np.int64([1, 2, 3])),
        ):
            start, gradients = values(100, 1), [values(100, seed) for seed in (2, 3, 4)]
            w, m, v = start.copy(), np.zeros(100, np.float32), np.zeros(100, np.float32)
            for at, gradient in enumerate(gradients):
                number = numbers[at : at + 1] if getattr(numbers, "dtype", None) == np.int32 else numbers[at]
                optim.step([w], [gradient], [m], [v], number, **{**OPTIONS, "lr": lr})
            check_steps(self, (w, m, v), start, gradients, ("f32",) * 3, **OPTIONS)

    def test_what_is_refused(self):
        w, zero = values(8, 1), lambda: np.zeros(8, np.float32)
        step = lambda *of, **options: optim.step(*([x] for x in of), 1, **options)
        frozen = zero()
        frozen.flags.writeable = False
        for kind, words, call in (
            (ferroflash.InputTypeError, "holds floating-point numbers of 64 bits", lambda: step(w.astype(np.float64), w, zero(), zero())),
            (ferroflash.InputTypeError, "holds f16; f32 is accepted", lambda: step(w, w, zero().astype(np.float16), zero())),
            (ferroflash.InputError, r"has shape \[7\]", lambda: step(w, w[:7], zero(), zero())),
            (ferroflash.InputError, "must be contiguous", lambda: step(values(16, 1)[::2], w, zero(), zero())),
            (ferroflash.InputError, "read-only", lambda: step(w, w.copy(), frozen, zero())),
            (ferroflash.InputError, "overlap", lambda: step(w, w, zero(), zero())),
            (ferroflash.InputError, "are 1, 0, 1, 1, 1; as many of all", lambda: optim.step([w], [], [w], [w], 1)),
            (ferroflash.InputError, "number is 0", lambda: optim.step([w], [w], [w], [w], 0)),
            (ferroflash.InputError, r"the learning rate has shape \[2\]", lambda: step(w, w.copy(), zero(), zero(), lr=zero()[:2])),
            (ferroflash.InputTypeError, "learning rate holds floating-point numbers of 64 bits", lambda: step(w, w.copy(), zero(), zero(), lr=np.zeros(1))),
            (ferroflash.InputTypeError, "learning rate holds f16", lambda: step(w, w.copy(), zero(), zero(), lr=np.zeros(1, np.float16))),
            (ferroflash.InputTypeError, "holds integers of 64 bits; int32", lambda: optim.step([w], [w.copy()], [zero()], [zero()], np.ones(1, np.int64))),
            (ferroflash.InputError, "the number of the step holds 2 numbers", lambda: optim.step([w], [w.copy()], [zero()], [zero()], np.ones(2, np.int32))),
            (ferroflash.InputError, "learning rate -1", lambda: step(w, w.copy(), zero(), zero(), lr=-1.0)),
            (ferroflash.InputError, "beta2 1", lambda: step(w, w.copy(), zero(), zero(), betas=(0.9, 1.0))),
            (ferroflash.InputError, "no gradients were given", lambda: optim.norm([])),
            (ferroflash.InputError, "largest norm -1", lambda: optim.norm([w], max_norm=-1)),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()
        optim.step([], [], [], [], 1)


@unittest.skipIf(torch is None, "torch is not installed")
class Torch(unittest.TestCase):
    def parameters(self, dtype=None):
        return [torch.nn.Parameter(torch.from_numpy(values(shape, seed)).to(DEVICE, dtype)) for seed, shape in enumerate(SHAPES)]

    def draw_gradients(self, parameters, t):
        for seed, parameter in enumerate(parameters):
            parameter.grad = torch.from_numpy(values(parameter.shape, 10 * t + seed)).to(DEVICE, parameter.dtype)

    def test_as_pytorch_has_it(self):
        ours, theirs = self.parameters(), self.parameters()
        groups = lambda of: [{"params": of[:1]}, {"params": of[1:], "lr": 0.1, "weight_decay": 0.0}]
        optimizers = optim.AdamW(groups(ours), **OPTIONS), torch.optim.AdamW(groups(theirs), **OPTIONS)
        for t in range(1, 4):
            for parameters, optimizer in zip((ours, theirs), optimizers):
                self.draw_gradients(parameters, t)
                if t == 2:
                    parameters[1].grad = None  # whose steps are fewer from then on
                optimizer.step()
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b)

    def test_masters(self):
        for dtype, precision in ((torch.float16, "f16"), (torch.bfloat16, "bf16")):
            parameters = self.parameters(dtype)
            starts = [array(parameter) for parameter in parameters]
            optimizer, gradients = optim.AdamW(parameters, **OPTIONS), []
            for t in range(1, 4):
                self.draw_gradients(parameters, t)
                gradients.append([array(parameter.grad) for parameter in parameters])
                optimizer.step()
            for index, (parameter, start) in enumerate(zip(parameters, starts)):
                state = optimizer.state[parameter]
                found = [array(state[name]) for name in ("master", "exp_avg", "exp_avg_sq")]
                check_steps(self, found, start, [of_step[index] for of_step in gradients], ("f32",) * 3, **OPTIONS)
                np.testing.assert_array_equal(array(parameter), round_to(found[0], precision))
        self.draw_gradients(parameters, 1)
        without = optim.AdamW(parameters, master_weights=False)
        without.step()
        self.assertNotIn("master", without.state[parameters[0]])

    def test_states_go_on_where_they_were_saved(self):
        parameters = self.parameters(torch.bfloat16)
        optimizer = optim.AdamW(parameters, **OPTIONS)
        self.draw_gradients(parameters, 1)
        optimizer.step()
        kept, others = copy.deepcopy(optimizer.state_dict()), [torch.nn.Parameter(x.detach().clone()) for x in parameters]
        self.assertEqual(kept["state"][0]["master"].dtype, torch.float32)
        other = optim.AdamW(others)
        other.load_state_dict(kept)
        for of, of_optimizer in ((parameters, optimizer), (others, other)):
            self.draw_gradients(of, 2)
            of_optimizer.step()
        for a, b in zip(parameters, others):
            self.assertTrue(torch.equal(a, b))
            for name in ("master", "exp_avg", "exp_avg_sq"):
                self.assertTrue(torch.equal(optimizer.state[a][name], other.state[b][name]), name)

    def test_a_rate_that_is_a_tensor(self):
        """A schedule writes into it, and a step has its value of then; steps are counted on the host or on the device."""
        for capturable in (False, True):
            for shape in ((), (1,)):
                ours, theirs = self.parameters(), self.parameters()
                rate = torch.full(shape, 0.1, device=DEVICE)
                optimizer = optim.AdamW(ours, **{**OPTIONS, "lr": rate}, capturable=capturable)
                expected = torch.optim.AdamW(theirs, **{**OPTIONS, "lr": 0.1})
                schedules = [torch.optim.lr_scheduler.LambdaLR(of, lambda epoch: 0.5**epoch) for of in (optimizer, expected)]
                for t in range(1, 5):
                    for parameters, of, schedule in zip((ours, theirs), (optimizer, expected), schedules):
                        self.draw_gradients(parameters, t)
                        if t == 3:
                            parameters[1].grad = None  # whose steps are fewer from then on
                        of.step()
                        schedule.step()
                self.assertIs(optimizer.param_groups[0]["lr"], rate)
                self.assertAlmostEqual(rate.item(), 0.1 / 16)
                for a, b in zip(ours, theirs):
                    torch.testing.assert_close(a, b)
                steps = [optimizer.state[parameter]["step"] for parameter in ours]
                self.assertEqual([int(step) for step in steps], [4, 3, 4, 4])
                self.assertEqual({isinstance(step, torch.Tensor) for step in steps}, {capturable})

    def test_steps_on_the_device_go_on_where_they_were_saved(self):
        """Parameters that have taken as many steps share their number, also after it was saved, from either kind of optimizer to either."""
        for before, after in ((True, True), (True, False), (False, True)):
            parameters = self.parameters(torch.bfloat16)
            optimizer = optim.AdamW(parameters, **OPTIONS, capturable=before)
            for t in (1, 2):
                self.draw_gradients(parameters, t)
                if t == 2:
                    parameters[0].grad = None
                optimizer.step()
            kept = copy.deepcopy(optimizer.state_dict())
            for group in kept["param_groups"]:
                group["capturable"] = after
            others = [torch.nn.Parameter(x.detach().clone()) for x in parameters]
            other = optim.AdamW(others)
            other.load_state_dict(kept)
            steps = [other.state[parameter]["step"] for parameter in others]
            self.assertEqual([int(step) for step in steps], [1, 2, 2, 2])
            if after:
                self.assertEqual((len({id(step) for step in steps}), steps[0].dtype), (2, torch.int32))
            for of, of_optimizer in ((parameters, optimizer), (others, other)):
                self.draw_gradients(of, 3)
                of_optimizer.step()
            for a, b in zip(parameters, others):
                torch.testing.assert_close(optimizer.state[a]["master"], other.state[b]["master"])
        # One that was saved before there were steps on the device.
        for group in kept["param_groups"]:
            del group["capturable"]
        other.load_state_dict(kept)
        self.assertFalse(other.param_groups[0]["capturable"])

    def test_a_step_that_is_refused_does_not_count(self):
        parameters = self.parameters()
        optimizer = optim.AdamW(parameters, capturable=True)
        self.draw_gradients(parameters, 1)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = torch.zeros(2, device=DEVICE)
        with self.assertRaisesRegex(ferroflash.InputError, r"lr has shape \(2,\); a tensor of one element"):
            optimizer.step()
        self.assertEqual(optimizer.state[parameters[0]]["step"].item(), 1)

    @unittest.skipUnless(DEVICE == "cuda", "graphs are captured on GPUs")
    def test_a_captured_step(self):
        """Each launch of the graph counts, and reads the rate."""
        ours, theirs = self.parameters(torch.bfloat16), self.parameters(torch.bfloat16)
        rate = torch.full((), 0.1, device=DEVICE)
        optimizer = optim.AdamW(ours, **{**OPTIONS, "lr": rate}, capturable=True)
        expected, graph = optim.AdamW(theirs, **{**OPTIONS, "lr": 0.1}), torch.cuda.CUDAGraph()
        for parameters in (ours, theirs):
            self.draw_gradients(parameters, 1)
        optimizer.step()
        expected.step()
        with torch.cuda.graph(graph):
            optimizer.step()
        for t in range(2, 5):
            rate.fill_(0.1 / t)
            expected.param_groups[0]["lr"] = rate.item()
            graph.replay()
            expected.step()
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(optimizer.state[a]["master"], expected.state[b]["master"])
        self.assertEqual(optimizer.state[ours[0]]["step"].item(), 4)

    def test_it_is_an_optimizer(self):
        (parameter, *_) = self.parameters()
        optimizer = optim.AdamW([parameter], lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
        version = parameter._version

        def closure():
            optimizer.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            return loss

        losses = []
        for _ in range(5):
            losses.append(optimizer.step(closure).item())
            schedule.step()
        self.assertEqual(sorted(losses, reverse=True), losses)
        self.assertLess(losses[-1], losses[0])
        self.assertAlmostEqual(optimizer.param_groups[0]["lr"], 0.1 / 32)
        # Autograd finds out that a parameter that it keeps has changed.
        self.assertGreater(parameter._version, version)

    def test_clipping(self):
        ours, theirs = self.parameters(), self.parameters()
        for most in (1.0, 1e4):
            for parameters in (ours, theirs):
                self.draw_gradients(parameters, 1)
            norm, coefficient = optim.gradient_norm(ours, most)
            expected = torch.nn.utils.clip_grad_norm_(theirs, most)
            torch.testing.assert_close(norm, expected)
            self.assertEqual(coefficient.shape, (1,))
            # Without a pass over the gradients, the step is the same.
            clone = [torch.nn.Parameter(x.detach().clone()) for x in ours]
            for x, of in zip(clone, ours):
                x.grad = of.grad.clone()
            optim.AdamW(clone, **OPTIONS).step(gradient_factor=coefficient)
            torch.testing.assert_close(optim.clip_grad_norm_(ours, most), expected)
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a.grad, b.grad)
            optim.AdamW(ours, **OPTIONS).step()
            for a, b in zip(ours, clone):
                torch.testing.assert_close(a, b)
            theirs = [torch.nn.Parameter(x.detach().clone()) for x in ours]
        self.assertEqual(optim.clip_grad_norm_(self.parameters(), 1.0).item(), 0.0)

    def test_what_is_refused(self):
        parameters, missing = self.parameters(), ferroflash.MissingFeatureError
        self.draw_gradients(parameters, 1)
        parameters[0].grad[0, 0] = float("inf")
        before = parameters[1].grad.clone()
        for kind, words, call in (
            (missing, "AdamW: amsgrad", lambda: optim.AdamW(parameters, amsgrad=True)),
            (missing, "AdamW: maximize", lambda: optim.AdamW(parameters, maximize=True)),
            (missing, "AdamW: differentiable", lambda: optim.AdamW(parameters, differentiable=True)),
            (missing, "norm_type inf", lambda: optim.clip_grad_norm_(parameters, 1.0, float("inf"))),
            (missing, "recording a gradient of parameter 0", lambda: optim.step(parameters, parameters, parameters, parameters, 1)),
            (ferroflash.InputTypeError, "lr holds torch.float64; torch.float32", lambda: optim.AdamW(parameters, lr=torch.tensor(0.1).double())),
            (ferroflash.InputError, r"lr has shape \(3,\); a tensor of one element", lambda: optim.AdamW(parameters, lr=torch.ones(3))),
            (ferroflash.InputError, "norm of the gradients is inf", lambda: optim.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)),
            (ferroflash.InputError, "no parameter has a gradient", lambda: optim.gradient_norm(self.parameters())),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()
        self.assertTrue(torch.equal(parameters[1].grad, before))
        double = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64, device=DEVICE))
        double.grad = torch.zeros_like(double)
        with self.assertRaisesRegex(ferroflash.InputTypeError, "parameter 0 holds torch.float64"):
            optim.AdamW([double]).step()


def array(tensor):
    """The tensor's values, in the precision that NumPy has at least."""
    return tensor.detach().float().cpu().numpy()


if __name__ == "__main__":
    unittest.main()
