"""A lab at work in its kernel: the settings it runs with, what it keeps, records and checks."""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from labkit import checks
from labkit.course import maker
from labkit.errors import LabError
from labkit.figures import Estimate
from labkit.files import sha256, write_json
from labkit.folders import half_done_is_deleted, own, remove
from labkit.machine import machine_name
from labkit.making import Explained, make
from labkit.products import Products, check_name, folder_lock
from labkit.profiles import Profile, runs_folder
from labkit.replay import replay, save_recording
from labkit.screen import presenting
from labkit.summary import Records, write_summary
from labkit.workflows import fill_workflow


class Lab:
    """One lab of one run: its profile, its folder, its products and figures.

    Made by :func:`start`. Raises LabError for a folder that is not labkit's.
    """

    def __init__(self, number: str, profile: Profile):
        self.number, self.profile = number, profile
        self.folder = runs_folder() / profile.name
        self.logs = self.folder / "logs"
        own(self.folder)
        self.products = Products(self.folder)
        self.records = Records(self.products)
        self.used: dict[str, str] = {}  # product -> id: what this lab's figures are measured on

    def path(self, product: str) -> Path:
        """Path of a finished *product*, whose every byte is as it was left.

        Raises LabError with the lab to run first where there is none.
        """
        return self._path(product, hashed=True)

    def require(self, product: str) -> None:
        """Raises the errors of :meth:`path`, without reading the files."""
        self._path(product, hashed=False)

    def cleared(self, name: str) -> Path:
        """Path of *name* in the run folder, with nothing there."""
        remove(self.folder / name, inside=self.folder)
        return self.folder / name

    def _path(self, product: str, *, hashed: bool) -> Path:
        path = self.folder / product
        if fault := self.products.fault(product, hashed=hashed):
            if made_in := maker(product):
                raise LabError(f"run lab {made_in} first: its product {path} {fault}.")
            raise LabError(f"no lab makes the product {path}, which {fault}.")
        stamp = self.products.stamp(product)
        if stamp.origin != self.profile.origin():
            raise LabError(
                f"run lab 01 first: {path} was made from another model or other data than this "
                f"kernel is set to ({self.profile.model} and {self.profile.data}). Or set "
                "LAB_MODEL and LAB_DATA, or MODEL and DATA in lab 01, as they were."
            )
        self.used[product] = stamp.id
        return path

    def write(self, product: str, text: str) -> Path:
        """Path of *product*, a file with *text*.

        What needs it stays current while the text is the same.
        """
        check_name(product)
        partial = self._partial(product)
        own(self.folder)
        remove(partial, inside=self.folder)  # a link there would be written through
        with half_done_is_deleted(partial, inside=self.folder):
            partial.write_text(text, encoding="utf-8")
        decision = self.products.decision({"written in": self.number})
        stamp = self.products.put(
            product, partial, decision, identity=sha256(partial), **self._facts(seconds=0.0)
        )
        self.used[product] = stamp.id
        return self.folder / product

    def keep(
        self,
        product: str,
        build: Callable[[object, Path], object],
        recipe: object = None,
        *,
        needs: Iterable[str] = (),
        entry: str | tuple[str, ...] = (),
        anew: bool = False,
    ) -> Path:
        """Path of *product*, a file or folder that the slow *build* writes, once.

        It is kept while what decides it stays the same: the *recipe* (plain values, such as a
        workflow), the products in *needs*, the package versions and the version of labkit's
        passes. *build* is called with a copy of the recipe and the path to write to; its own code
        decides nothing, so that whatever shall decide must stand in the recipe. *anew* makes it in
        any case. Of a folder only *entry* is kept: the entries of that name, or, if it is one
        text, that file or folder itself. A recipe that is a workflow is also written to
        workflows/PRODUCT.json in the run folder, for `olive run --config`. Raises LabError where
        an Olive run yields no model, nothing is written, or the disk is full.
        """
        check_name(product)  # before the slow build
        needs = tuple(needs)
        for need in needs:
            self.require(need)
        decision = self.products.decision(recipe, needs)
        change = self.products.change(product, decision)
        if not change and not anew:
            # what decides it is the same, so it serves this kernel's model and data, too
            stamp = self.products.serve(product, self.profile.origin())
            made_from = (
                ", ".join(["the same recipe"] * (recipe is not None) + list(needs)) or "the same"
            )
            other = (
                ""
                if stamp.machine == machine_name()
                else f", on another machine ({stamp.machine})"
            )
            print(
                f"{product}: kept, made at {stamp.made_at} in {stamp.seconds:.1f} s from "
                f"{made_from}{other}"
            )
            if presenting():
                replay(self.folder, stamp)
        else:
            if self.products.stamp(product) and change:
                print(f"{product}: made anew, because {change}")
            # from here on the old product is that of other inputs: a kernel that dies must not
            # leave it finished
            partial = self._partial(product)
            log = self.logs / f"{self.number}-{product}.log"
            with folder_lock(self.folder):
                for need in needs:
                    self.path(need)
                with Explained(product, partial, log):
                    self.products.forget(product)
                    written, cost, reports = make(
                        product, build, recipe, entry, partial, log, self.profile
                    )
                    stamp = self.products.put(product, written, decision, **self._facts(**cost))
                    remove(partial, inside=self.folder)
                save_recording(self.folder, stamp, reports)
            print(
                f"{product}: {stamp.seconds:.1f} s, peak memory {stamp.peak_rss_mb:,.0f} MB, "
                f"{stamp.mb:,.1f} MB written"
            )
        self.used[product] = stamp.id
        if isinstance(recipe, dict) and "passes" in recipe:
            folder = self.folder / "workflows"
            if not folder.is_symlink():  # nothing is written through a link
                with contextlib.suppress(OSError, TypeError):  # for a shell; no product
                    write_json(folder / f"{product}.json", recipe)
        return self.folder / product

    def workflow(self, name: str, *, provider: str = "", **values) -> dict:
        """The Olive workflow notebooks/workflows/NAME.json, with each "$slot" filled in.

        Slots are the fields of the profile and the *values* given here. The system for the
        execution *provider* (the profile's, if none is named) and Olive's cache are added. Raises
        LabError where a slot has no value.
        """
        known = vars(self.profile) | values
        known = self.profile.derived(known["steps"]) | known
        provider = provider or self.profile.provider
        return fill_workflow(name, known, provider, cache=self.folder / ".olive-cache")

    def record(self, section: str, **figures: Estimate) -> None:
        """Stores *figures* for the labs that follow and for summary.json, and prints them.

        They count as long as the products that this lab has used up to here are not made anew.
        """
        self.records.add(self.number, dict(self.used), section, figures)
        for name, figure in figures.items():
            print(f"{section} {name}: {figure}")

    def figure(self, section: str, name: str) -> Estimate:
        """A figure that this lab or one before it has recorded; LabError where there is none that
        still counts.
        """
        try:
            return self.records.sections()[section][name]
        except KeyError:
            raise LabError(
                f"the figure {section} {name} is missing, or was measured on products that were "
                "made anew since. Run the labs before this one again, in order: what they have "
                "kept stays."
            ) from None

    def checkpoint(self, number: str, *, judged: bool = True, **claims: bool) -> None:
        """Prints each claim; LabError at the first that is false.

        Where not *judged*, says so and passes.
        """
        advice = (
            f"Logs are in {self.logs}. './lab reset --from {self.number}' and a new run repeat "
            "this lab."
        )
        checks.checkpoint(number, claims, judged=judged, advice=advice)
        self.records.pass_checkpoint(self.number, dict(self.used), number)

    def exercise(self, number: str, **claims: bool) -> None:
        """Prints whether the exercise is solved, claim by claim; raises nothing, so that a run
        goes on.
        """
        checks.exercise(number, claims)

    def summary(self) -> dict:
        """The figures of all labs that have run, also written to summary.json."""
        return write_summary(self.products, self.profile)

    def _facts(self, **facts) -> dict:
        return {"lab": self.number, "origin": self.profile.origin()} | facts

    def _partial(self, product: str) -> Path:
        # no suffix: Olive would take it for a file
        return self.folder / f".partial-{product.replace('.', '-').replace('/', '-')}"
