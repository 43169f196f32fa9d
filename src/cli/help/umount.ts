/** The help of `vimgfs umount`. */
export const HELP = `Usage: vimgfs umount [--lazy] MOUNTPOINT

Unmounts MOUNTPOINT, and returns when its server has ended and all that was written is in the image.
It also removes a mount whose server was killed. It fails, and MOUNTPOINT stays mounted, if the
server does not answer, or if another mount namespace (of a container, for example) has the mount,
too; the line names the process.

  -l, --lazy             take it away at once, also while it is in use, and do not wait: the server
                         saves what was written when it ends; if that fails, only its log says so

Example:
  vimgfs umount /mnt/x
`
