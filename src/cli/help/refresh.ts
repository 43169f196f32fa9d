/** The help of `vimgfs refresh`. */
export const HELP = `Usage: vimgfs refresh MOUNTPOINT

Makes a read-only mount open its image again, by its path as at mounting, and returns when the mount
shows what is there now. Mounts that write need none.

A mount whose image another program has changed answers EIO until then. A mount with force-share
shows the snapshots that the machine has taken or deleted, and what it has written. If the image
cannot be opened, one line says why, and the mount stays as it was.

Example:
  vimgfs refresh /mnt/x
`
