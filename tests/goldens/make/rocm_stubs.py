"""Builds empty stand-ins for the ROCm libraries that jaxlib-rocm 0.4.4 is linked against.

    python3 rocm_stubs.py SITE_PACKAGES/jaxlib OUT

CPU wheels of jaxlib before 0.4.13 are no longer published; of that time only jaxlib-rocm is left.
Its CPU backend is an ordinary jaxlib of February 2023, but the module does not load where the
ROCm libraries are missing. With OUT on LD_LIBRARY_PATH it does; nothing in OUT is ever called.
Needs gcc, readelf and nm.
"""
import collections
import ctypes
import pathlib
import re
import subprocess
import sys

PRESENT = ("libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libstdc++", "libgcc_s",
           "ld-linux", "libjaxlib_mlir")
UNVERSIONED_GO_TO = "libhsa-runtime64.so.1"  # any library will do: symbols are looked up in all


def main():
    """Read what the shared objects below the first argument need, and build it in the second."""
    objects = list(pathlib.Path(sys.argv[1]).rglob("*.so"))
    out = pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    needed, provider = libraries(objects)
    wanted = collections.defaultdict(lambda: collections.defaultdict(set))
    for symbol, version in undefined(objects):
        if version in provider:
            wanted[provider[version]][version].add(symbol)
        elif not version and not in_this_process(symbol):
            wanted[UNVERSIONED_GO_TO][""].add(symbol)
    for library in sorted(needed):
        build(out, library, wanted[library])


def libraries(objects):
    """The names of the missing libraries, and which of them gives each symbol version."""
    needed, provider = set(), {}
    for path in objects:
        found = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-dW", path))
        needed |= {name for name in found if not name.startswith(PRESENT)}
        library = None
        for line in output("readelf", "-VW", path).splitlines():
            file = re.search(r"File: (\S+)", line)
            version = re.search(r"Name: (\S+)\s+Flags", line)
            library = file.group(1) if file else library
            if version and library and not library.startswith(PRESENT):
                provider[version.group(1)] = library
    return needed, provider


def undefined(objects):
    """The (symbol, version) pairs that no object of the wheel defines."""
    missing, defined = set(), set()
    for path in objects:
        for line in output("nm", "-D", path).splitlines():
            fields = line.split()
            symbol, _, version = fields[-1].replace("@@", "@").partition("@")
            if fields[0] == "U":
                missing.add((symbol, version))
            elif len(fields) == 3:
                defined.add(symbol)
    return sorted(pair for pair in missing if pair[0] not in defined)


def in_this_process(symbol):
    """Whether Python, libc or libstdc++ has the symbol."""
    return symbol.startswith(("Py", "_Py")) or hasattr(ctypes.CDLL("libstdc++.so.6"), symbol)


def build(out, library, symbols_by_version):
    """Compile one library whose functions all return an error (or, for binaries, a handle)."""
    source, versions = out / "stub.c", out / "stub.map"
    lines = []
    for symbol in sorted(set().union(*symbols_by_version.values())):
        result = "(long)z" if symbol.startswith("__hip") else "1"
        lines.append(f"long {symbol}(void) {{ static char z[4096]; return {result}; }}\n")
    source.write_text("".join(lines))
    command = ["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", "-o", out / library,
               f"-Wl,-soname,{library}", source]
    if any(symbols_by_version):
        versions.write_text("".join(
            f"{version} {{ global: {' '.join(s + ';' for s in sorted(names))} }};\n"
            for version, names in symbols_by_version.items() if version))
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run(command, check=True)


def output(*command):
    """What a command prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
