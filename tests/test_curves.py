"""The file of recorded curves."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import pytest

from nas_attn.curves import Curve, Point, recorded_curves, write_curves
from nas_attn.errors import DataError, NasAttnError
from nas_attn.simulation.synthetic import (
    ReplayConfig,
    curve_of,
)
from tests.helpers.curves import MIXED, MULTI_HEAD, MULTI_QUERY, PARAMETERS

HEADER = "plan,seed,num_updates,loss,seconds\n"
QUOTED = '"' + MULTI_HEAD.replace('"', '""') + '"'


class TestRecordedCurves:
    def make(self) -> dict[tuple[str, int], Curve]:
        return {
            (MULTI_HEAD, 1): Curve((Point(100, 4.25, 10.1), Point(250, 1 / 3, 20.7))),
            (MIXED, 1): Curve((Point(100, 5.5, 9.0), Point(200, math.inf, 18.0))),
            (MIXED, 2): Curve((Point(7, 5.25, 9.0),)),
        }

    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        write_curves(self.make(), path)
        assert recorded_curves(path) == self.make()
        assert [entry.name for entry in tmp_path.iterdir()] == ["curves.csv"]

    def test_gzipped(self, tmp_path: Path) -> None:
        path, again = tmp_path / "curves.csv.gz", tmp_path / "again.csv.gz"
        write_curves(self.make(), path)
        write_curves(self.make(), again)
        assert path.read_bytes()[:2] == b"\x1f\x8b" and path.read_bytes() == again.read_bytes()
        assert recorded_curves(path) == self.make()
        assert curve_of(ReplayConfig(curves=path), MIXED, PARAMETERS, 2) == self.make()[MIXED, 2]
        path.write_bytes(gzip.compress(f"{HEADER}{QUOTED},1,100,low,1\n".encode()))
        with pytest.raises(DataError, match="line 2, column loss: must be a number"):
            recorded_curves(path)

    def test_refuses_a_broken_gzip(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv.gz"
        write_curves(self.make(), path)
        whole = path.read_bytes()
        flipped = whole[:20] + bytes([whole[20] ^ 255]) + whole[21:]
        for data in (b"", HEADER.encode(), whole[:-12], flipped, whole[:-6] + b"123456"):
            path.write_bytes(data)
            with pytest.raises(DataError, match=r"cannot be read|holds no curve|must be plan"):
                recorded_curves(path)

    def test_columns_and_curves_may_stand_in_any_order(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        rows = ["loss,seed,seconds,num_updates,plan", f"4.0,1,1,100,{QUOTED}"]
        rows += [f"4.5,2,1,100,{QUOTED}", f"nan,1,2,200,{QUOTED}"]
        path.write_text("\n".join(rows), "utf-8")
        curves = recorded_curves(path)
        assert list(curves) == [(MULTI_HEAD, 1), (MULTI_HEAD, 2)]
        assert math.isnan(curves[MULTI_HEAD, 1].points[1].loss)

    def test_curve_of_takes_the_recorded_one(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        write_curves(self.make(), path)
        config = ReplayConfig(curves=path, seconds=0.5)
        assert curve_of(config, MIXED, PARAMETERS, 2) == self.make()[MIXED, 2]
        assert curve_of(config, MULTI_HEAD, PARAMETERS, 1).seconds == 20.7

    def test_curve_of_sees_a_new_file(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        config = ReplayConfig(curves=path)
        for seconds in (1.0, 2.0):
            write_curves({(MIXED, 1): Curve((Point(1, 2.0, seconds),))}, path)
            os.utime(path, (seconds, seconds))
            assert curve_of(config, MIXED, PARAMETERS, 1).seconds == seconds

    def test_says_what_is_not_recorded(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        write_curves(self.make(), path)
        config = ReplayConfig(curves=path)
        with pytest.raises(NasAttnError, match="no curve of seed 3, only of seeds 1, 2, for plan"):
            curve_of(config, MIXED, PARAMETERS, 3)
        with pytest.raises(NasAttnError, match=r"no curve of seed 1, of no seed, for plan .*query"):
            curve_of(config, MULTI_QUERY, PARAMETERS, 1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "line 1: must be plan,seed,num_updates,loss,seconds, but is nothing"),
            ("plan,seed,loss,seconds\n", "line 1: must be plan,.*, but is plan,seed,loss,seconds"),
            (HEADER, "holds no curve"),
            (f"{HEADER}{QUOTED},1,100,4.0\n", "line 2: must have 5 cells"),
            (f"{HEADER}{QUOTED},1,100,4.0,1,1\n", "line 2: must have 5 cells"),
            (f"{HEADER}{QUOTED},one,100,4.0,1\n", "line 2, column seed: .* but is 'one'"),
            (f"{HEADER}{QUOTED},1,1e2,4.0,1\n", "line 2, column num_updates: must be a whole"),
            (f"{HEADER}{QUOTED},1,0,4.0,1\n", "line 2, column num_updates: must be above 0"),
            (f"{HEADER}{QUOTED},1,100,low,1\n", "line 2, column loss: must be a number, but"),
            (f"{HEADER}{QUOTED},1,100,4.0,\n", "line 2, column seconds: must be a number, but"),
            (f"{HEADER}{QUOTED},1,100,4.0,-1\n", "line 2, column seconds: must be finite and"),
            (f"{HEADER}{QUOTED},1,100,4.0,inf\n", "line 2, column seconds: must be finite and"),
            (f"{HEADER}{QUOTED},1,100,4.0,nan\n", "line 2, column seconds: must be finite and"),
            (f"{HEADER}multi_head,1,100,4.0,1\n", "line 2, column plan: is no plan"),
            (f"{HEADER}[],1,100,4.0,1\n", "line 2, column plan: is no plan"),
            (
                f'{HEADER}"{{""encoder_self"":""multi_head""}}",1,100,4.0,1\n',
                'line 2, column plan: must be written {"encoder_self": {"scheme": "multi_head"}}',
            ),
            (
                f"{HEADER}{QUOTED},1,100,4.0,1\n{QUOTED},1,100,3.0,2\n",
                "line 3, column num_updates: must be above 100",
            ),
            (
                f"{HEADER}{QUOTED},1,100,4.0,2\n{QUOTED},1,200,3.0,1\n",
                "line 3, column seconds: must be finite and not below 2.0",
            ),
            ('"half', "line 1: unexpected end of data"),
            (f'{HEADER}{QUOTED},1,100,4.0,1\n"half', "line 3: unexpected end of data"),
        ],
    )
    def test_refuses_a_malformed_file(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "curves.csv"
        path.write_text(text, "utf-8")
        with pytest.raises(DataError, match=message):
            recorded_curves(path)

    def test_refuses_what_is_no_text_or_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "curves.csv"
        with pytest.raises(DataError, match="cannot be read"):
            curve_of(ReplayConfig(curves=path), MIXED, PARAMETERS, 1)
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="cannot be read"):
            recorded_curves(path)
