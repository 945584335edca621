"""Tables for people. Ratios first: they hold on other machines, seconds don't."""

FIRST, RESTART, LATENCY, BURST, MEMORY = "first", "restart", "latency", "burst", "memory"


def report(results):
    out = ["# Benchmark report", "", "Written by `bench/run`; how each figure is measured: `bench/README.md`.", "", *machine(results)]
    for title, part in results["parts"].items():
        out += ["", f"## {title}"]
        if "flush" in part:
            f = part["flush"]
            out += ["", f"One flush (4 KiB appended, `fdatasync`) takes {ms(f['median_s'])} ms here "
                    f"({ms(f['min_s'])} to {ms(f['max_s'])}, median of 50)."]
        for name, table in (("first", first), ("restart", restart), ("live", live), ("memory", memory)):
            if name in part:
                out += ["", *table(part[name])]
    out += ["", "## Goals", "", *goals(results)]
    return "\n".join(out) + "\n"


def machine(results):
    m, v = results["machine"], results["versions"]
    versions = ", ".join(f"{name} {number}" for name, number in v.items())
    return [
        f"{m['cores']} cores ({m['cpu']}), {m['ram_gib']} GiB, kernel {m['kernel']}; load {m['load']:.1f} at the start. "
        f"{versions}. Release build. Page cache warm. fs_mirror {results['revision']}.",
    ]


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def span(s, digits=2):
    return f"{s['median']:.{digits}f} ({s['min']:.{digits}f} to {s['max']:.{digits}f})"


def ms(seconds):
    return "-" if seconds is None else f"{seconds * 1000:.2f}"


def ratio(a, b):
    return f"{a / b:.2f}" if a is not None and b else "-"


def median(part, name):
    row = part["tools"].get(name)
    return row["seconds"]["median"] if row and row["codes"] == [0] else None


def first(part):
    rows, tar, rsync = [], median(part, "tar pipe"), median(part, "rsync")
    for name, row in part["tools"].items():
        wall = row["seconds"]["median"]
        memory = row["runs"][0].get("anonymous_mib", 0)
        rows.append([name, span(row["seconds"]), ratio(wall, tar), ratio(wall, rsync), ratio(wall, part["floor"]["median"]),
                     f"{row['cpu_s']['median']:.2f}", f"{wall / part['files'] * 1e6:.0f}", f"{memory:.0f}", ended(row)])
    rows.append(["floor", span(part["floor"]), ratio(part["floor"]["median"], tar), ratio(part["floor"]["median"], rsync), "1.00", "",
                 f"{part['floor']['median'] / part['files'] * 1e6:.0f}", "", "files only, not durable"])
    runs = part["tools"].get("fs_mirror", {}).get("runs", [])
    left = f" After fs_mirror ended, `sync -f` took {max(run['sync_after_s'] for run in runs):.2f} s at most." if runs else ""
    return [f"### First copy: {part['tree']}", "",
            f"Durable at the end (peers: plus `sync -f`). Floor: one thread that reads, creates and writes the files.{left}", "",
            *table(["", "seconds: median (min to max)", "x tar", "x rsync", "x floor", "CPU s", "us per file", "anonymous MiB", "full comparison"], rows)]


def ended(row):
    text = {0: "equal"}.get(row.get("differences"), f"{row.get('differences')} differences") if "differences" in row else ""
    return text if row["codes"] == [0] else f"{text} EXIT CODES {row['codes']}"


def restart(part):
    find = median(part, "find -printf")
    rows = [[name, span(row["seconds"], 3), ratio(row["seconds"]["median"], find), f"{row['cpu_s']['median']:.2f}", ended(row)]
            for name, row in part["tools"].items()]
    return [f"### Restart, nothing changed: {part['tree']}", "", *table(["", "seconds: median (min to max)", "x find", "CPU s", ""], rows)]


def live(part):
    every = part["self"]["kinds"]
    names = list(every)
    lines = ["### One change, until it is right at DST", "",
             f"ms, p50 / p99 / max; one change every {part['every_ms']} ms in an open loop, looked for every 0.2 ms. "
             "`self`: DST is SRC, the floor of the method.", ""]
    phases = [("self", None, part["self"])]
    for tool, row in part["tools"].items():
        phases += [(tool, phase, row[key]) for phase, key in (("idle", "idle"), (f"{part['rate']} changes/s", "loaded")) if key in row]
    head = ["", *(f"{tool}, {phase}" if phase else tool for tool, phase, _ in phases)]
    rows = [["**all**", *(three(phase["all"]) for _, _, phase in phases)]]
    rows += [[name, *(three(phase["kinds"].get(name)) for _, _, phase in phases)] for name in names]
    rows.append(["samples", *(str(phase["all"]["n"]) for _, _, phase in phases)])
    lines += table(head, rows)
    rows = []
    for tool, row in part["tools"].items():
        if "failed" in row:
            rows.append([tool, row["failed"], "", "", "", ""])
            continue
        rows.append([tool, f"{row['idle_cores']:.3f}", f"{row['loaded_cores']:.2f}", "yes" if row["equal_after_load"] else f"no: {row['left_after_load']}",
                     f"{row['anonymous_mib']:.0f}", "equal" if row["differences"] == 0 else f"{row['differences']} differences"])
    lines += ["", *table(["", "cores idle", "cores under load", "equal when the load ended", "anonymous MiB at the end", "full comparison at the end"], rows)]
    lines += ["", f"### Bursts: {part['burst_files']} small files", "", "Seconds from the end of the burst until equal "
              "(the burst itself; CPU seconds of the tool; most anonymous MiB).", ""]
    bursts = list(dict.fromkeys(name for row in part["tools"].values() for name in row["bursts"]))
    rows = [[tool, *(one_burst(row["bursts"].get(name)) for name in bursts)] for tool, row in part["tools"].items()]
    return lines + table(["", *bursts], rows)


def three(q):
    if q is None:
        return "-"
    return " / ".join(ms(q[key]) for key in ("p50", "p99", "max")) + (f" **{q['lost']} lost**" if q["lost"] else "")


def one_burst(b):
    if b is None:
        return "-"
    after = "**not equal**" if b["after_s"] is None else f"{b['after_s']:.2f}"
    return f"{after} ({b['burst_s']:.2f}; {b['cpu_s']:.2f}; {b['anonymous_mib']:.0f})"


def memory(part):
    rows = []
    for name in ("first copy", "restart"):
        r = part.get(name, {})
        show = lambda key, digits=0: "-" if r.get(key) is None or r.get(key) is False else f"{r[key]:.{digits}f}"
        rows.append([name, show("following_s", 2), show("equal_s", 1), show("cpu_s", 1), show("peak_mib"), show("at_rest_mib"), show("following_mib"),
                     "equal" if r.get("equal") else f"not equal: {r.get('different')}"])
    return [f"### {part['files']:,} files", "", "Capture and apply in one process (both sides of a mirror).", "",
            *table(["", "first change seen, s", "equal, s", "CPU s", "anonymous MiB: peak", "at rest", "after 2,000 changes", ""], rows)]


def goals(results):
    """What was wanted beside what is."""
    ram = next(iter(results["parts"].values()))
    rows = []

    def row(what, want, value, good):
        rows.append([what, want, "not measured" if value is None else value, "" if value is None else "yes" if good else "**no**"])

    if "first" in ram:
        ours, tar, rsync = (median(ram["first"], name) for name in ("fs_mirror", "tar pipe", "rsync"))
        if ours and tar:
            row("first copy against tar", "at most 1.00 of its time", f"{ours / tar:.2f}", ours <= tar)
        if ours and rsync:
            row("first copy against rsync", "at least 1.5 times as fast", f"{rsync / ours:.2f}", rsync / ours >= 1.5)
    if "restart" in ram:
        ours, find = median(ram["restart"], "fs_mirror"), median(ram["restart"], "find -printf")
        if ours and find:
            row("restart against find", "at most 1.5 of its time", f"{ours / find:.2f}", ours <= 1.5 * find)
    ours = ram.get("live", {}).get("tools", {}).get("fs_mirror", {})
    for key, what, limits in (("idle", "one change, idle", (("p50", 5), ("p99", 20))), ("loaded", "one change, 200/s", (("p99", 50),))):
        for quantile, limit in limits:
            if key in ours and ours[key]["all"][quantile] is not None:
                q = ours[key]["all"]
                row(f"{what}: {quantile}", f"at most {limit} ms", ms(q[quantile]) + " ms", q[quantile] <= limit / 1000 and not q["lost"])
    if "untar" in ours.get("bursts", {}):
        after = ours["bursts"]["untar"]["after_s"]
        row(f"burst of {ram['live']['burst_files']} files: equal", "at most 1 s after", "never" if after is None else f"{after:.2f} s", after is not None and after <= 1)
    if "memory" in ram:
        most = max(ram["memory"][name].get("peak_mib", 0) for name in ("first copy", "restart"))
        row(f"anonymous memory, {ram['memory']['files']:,} files", "at most 128 MiB a side", f"{most:.0f} MiB (both sides)", most <= 256)
    return table(["", "goal", "here", "reached"], rows)
