/** The help of `vimgfs compare`. */
export const HELP = `Usage: vimgfs compare [OPTION…] IMAGE[@TAG] IMAGE[@TAG]

Compares the content of two disks, of any formats, and says where they first differ. IMAGE@TAG is a
snapshot. What one disk has past the end of the other one must be zeros.

  -s, --strict           the sizes must be equal, too, and what is data, zeros and unallocated
  -f, --format F         the first one is {formats} (found by its bytes)
  -F, --second-format F  the same for the second one
  -p, --progress         show progress also if standard error is no terminal
  -q, --quiet            print errors only
  -U, --force-share      read them also while others write them
  --passphrase-file FILE see vimgfs help mount
  --allow-path DIR       the images may also name files below DIR (their own folders)
  --ignore-cid           read a vmdk whose parent has changed since it was made
  -T MODE                taken for qemu-img's sake; it changes nothing

Exit code: 0 equal, 1 different, 2 wrong usage, or one cannot be opened, 3 the tables of one are
damaged, 4 one cannot be read.

Example:
  vimgfs compare disk.qcow2@before-upgrade backup.raw
`
