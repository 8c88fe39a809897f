"""The files that JupyterLab shows and saves."""

from pathlib import Path

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from tornado.web import HTTPError

from labkit.screen import presenting
from labkit.working_copies import WorkingCopies


class LabContents(AsyncLargeFileManager):
    """Jupyter's own manager of files, but the notebook of a lab is saved as a working copy.

    Its path in the browser, the links in it and the working folder of its kernel stay the same.
    """

    @property
    def copies(self) -> WorkingCopies:
        """Those of the clone that is served, of attendees or for the stage."""
        return WorkingCopies(Path(self.root_dir), "presenting" if presenting() else "working")

    def _get_os_path(self, path):
        return str(self.copies.current(Path(super()._get_os_path(path))))

    def _make_copy(self, path: str) -> None:
        with self.perm_to_403():
            self.copies.make(Path(super()._get_os_path(path)))

    async def save(self, model, path=""):
        self._make_copy(path)
        return await super().save(model, path)

    async def restore_checkpoint(self, checkpoint_id, path):
        self._make_copy(path)
        return await super().restore_checkpoint(checkpoint_id, path)

    async def rename_file(self, old_path, new_path):
        self._make_copy(old_path)
        return await super().rename_file(old_path, new_path)

    async def delete_file(self, path):
        if self.copies.is_original(Path(self._get_os_path(path))):
            raise HTTPError(
                403, f"{path} is a lab as it came, without changes of yours. It is not deleted."
            )
        return await super().delete_file(path)
