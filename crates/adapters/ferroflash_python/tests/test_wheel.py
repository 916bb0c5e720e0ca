"""What the wheel holds, and what its extension module shows to the other libraries of a process."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import unittest
import warnings
import zipfile

import ferroflash
from ferroflash import _native


class Wheel(unittest.TestCase):
    @unittest.skipIf(shutil.which("nm") is None, "nm is not installed (binutils)")
    def test_no_symbol_of_the_driver(self):
        """Another library of the process that links the driver would find ours instead."""
        listed = subprocess.run(["nm", "-D", _native.__file__], check=True, capture_output=True, text=True).stdout
        self.assertIn("PyInit__native", listed)
        symbols = [line.split()[-1].split("@")[0] for line in listed.splitlines()]
        self.assertEqual([name for name in symbols if re.match(r"(cu[A-Z]|cuda|nv[A-Z])", name)], [])

    @unittest.skipIf(shutil.which("readelf") is None, "readelf is not installed (binutils)")
    def test_it_links_nothing_of_cuda_and_no_interpreter(self):
        listed = subprocess.run(["readelf", "-d", _native.__file__], check=True, capture_output=True, text=True).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listed)
        self.assertIn("libc.so.6", needed)
        self.assertEqual([name for name in needed if not re.match(r"(libc|libm|libgcc_s|libpthread|libdl|librt|ld-linux.*)\.so", name)], [])

    def test_types_come_with_it(self):
        folder = pathlib.Path(ferroflash.__file__).parent
        self.assertTrue((folder / "py.typed").is_file())
        stubs = (folder / "__init__.pyi").read_text()
        for name in ferroflash.__all__:
            self.assertRegex(stubs, rf"(?m)^(class|def) {name}\b", name)
        modules = [ferroflash.optim, *(getattr(ferroflash.ops, name) for name in ferroflash.ops.__all__)]
        self.assertEqual(len(modules), 1 + len([path for path in (folder / "ops").glob("*.py") if path.stem != "__init__"]))
        for module in modules:
            stubs = pathlib.Path(module.__file__).with_suffix(".pyi").read_text()
            for name in module.__all__:
                self.assertRegex(stubs, rf"(?m)^(class|def) {name}\b", f"{module.__name__}.{name}")

    @unittest.skipIf("FERROFLASH_WHEEL" not in os.environ, "FERROFLASH_WHEEL does not name a wheel")
    def test_one_wheel_for_every_python(self):
        wheel = pathlib.Path(os.environ["FERROFLASH_WHEEL"])
        self.assertRegex(wheel.name, r"^ferroflash-[\d.]+-cp310-abi3-manylinux_2_\d+_\w+\.whl$")
        names = zipfile.ZipFile(wheel).namelist()
        self.assertIn("ferroflash/_native.abi3.so", names)
        outside = [name for name in names if not re.match(r"(ferroflash|ferroflash-[\d.]+\.dist-info)/", name)]
        self.assertEqual(outside, [])


class Readme(unittest.TestCase):
    """The programs of the package's page, of the repository's, and of that of the operators."""

    def test_every_program_runs(self):
        package = pathlib.Path(__file__).resolve().parents[1]
        repository = package.parents[2]
        pages = [package / "README.md", repository / "README.md", repository / "docs" / "operators.md"]
        programs = [(page, program) for page in pages if page.is_file() for program in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]
        self.assertGreaterEqual(len(programs), 2)
        for page, program in programs:
            with self.subTest(page=page.name, program=program):
                if "import torch" in program and importlib.util.find_spec("torch") is None:
                    continue  # tried where PyTorch is
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ferroflash.EmulatorWarning)
                    exec(compile(program, str(page), "exec"), {})


if __name__ == "__main__":
    unittest.main()
