/** The help of `vimgfs check`. */
export const HELP = `Usage: vimgfs check [OPTION…] IMAGE

Checks the tables of IMAGE ({checkable}): all that is used must be counted, and nothing
may be used twice. Of a vmdk it checks all extents, but not the parents. IMAGE may be mounted, and
named by its mount point; then writers wait for the check.

  --output=human|json    for people (the default) or for programs, with the fields of qemu-img check
  -r, --repair=leaks|all leaks: give back space that nothing uses; all: repair the rest, too. Nobody
                         else may have IMAGE open. Have a copy of it. No byte of the disk or of a
                         snapshot reads differently afterwards: what cannot be known stays.
                         Snapshots whose tables are lost are dropped; what they may own is kept
                         until --repair=leaks. Of a vmdk only sparse extents are repaired that
                         are neither compressed nor seSparse.
  -f, --format F         {formats} (found by its bytes)
  -U, --force-share      check an image that others write: what is found may be wrong
  --allow-path DIR       a vmdk may also name extents below DIR (its own folder)
  -p, --progress         show progress also if standard error is no terminal
  -q, --quiet            print errors only: the exit code says what was found
  -T MODE                taken for qemu-img's sake; it changes nothing

Exit code: 0 sound, 1 could not be checked, 2 damaged, 3 only space is lost, 63 the format has
nothing to check.

Example:
  vimgfs check disk.qcow2
  vimgfs check --repair all disk.qcow2
`
