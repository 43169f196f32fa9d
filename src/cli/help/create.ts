/** The help of `vimgfs create`. */
export const HELP = `Usage: vimgfs create [-f FMT] [-o OPTION,…] [-b BASE [-F FMT]] FILE [SIZE]

Makes the new, empty image FILE for a disk of SIZE, such as 512M, 20G or 1.5T.

  -f, --format FMT       {creatable} (raw)
  -o NAME=VALUE,…        options of the format, with qemu-img's names and defaults;
                         vimgfs create -f FMT -o help lists them
  -b, --backing BASE     the image that the new one stands on: it only holds what differs. The name
                         is stored as it is given, and starts from FILE's folder. Without SIZE, the
                         disk is as large as BASE's.
  -F, --backing-format FMT  BASE's format (found by its bytes, and stored)
  -u, --unsafe           do not look at BASE; it may be missing. Needs SIZE.
  --passphrase-file FILE the file with the passphrase of an encrypted image (-o encrypt.format=luks);
                         a newline at its end does not count; - is standard input. Without it,
                         vimgfs reads the file that VIMGFS_PASSPHRASE_FILE names, or asks twice.
  --force                replace files that exist already
  --output=human|json    what to print of the new image: a line, or the fields of vimgfs info
  -q, --quiet            print errors only
  -p, --progress         show progress also where standard error is no terminal
  --allow-path DIR       BASE may also name files below DIR (its own folder)

FILE appears when it is whole: after an error, Ctrl-C or kill there is nothing. A data file and the
extents of a vmdk lie beside it.

Exit code: 0 made, 1 could not be made, 2 wrong usage.

Example:
  vimgfs create -f qcow2 disk.qcow2 20G
  vimgfs create -f qcow2 -b disk.qcow2 overlay.qcow2
  vimgfs create -f vmdk -o subformat=monolithicFlat disk.vmdk 20G
`
