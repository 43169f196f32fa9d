/** The help of `vimgfs diff`. */
export const HELP = `Usage: vimgfs diff [OPTION…] IMAGE TAG [TAG]
       vimgfs diff [OPTION…] IMAGE[@TAG] IMAGE[@TAG]

Shows which parts of a disk have changed since the snapshot TAG, or between two snapshots, or
between two images that have backing files in common. It reads tables only, so it is fast: what
lies at the same place of a file is equal, everything else counts as changed, whole clusters at a
time, also if they have the same content. What only the larger disk has counts as changed.

  --exact                read what the tables do not show to be equal, and compare it
  --output=KIND          human: for people (the default); json: [{"start", "length"}];
                         ddrescue: a map for ddrescue -m: + changed, ? not changed
  -f, --format F         the first one is {formats} (found by its bytes)
  -F, --second-format F  the same for the second one
  -p, --progress         with --exact: show progress also if standard error is no terminal
  -q, --quiet            show no progress
  -U, --force-share      read them also while others write them
  --passphrase-file FILE with --exact: see vimgfs help mount
  --allow-path DIR       the images may also name files below DIR (their own folders)
  --ignore-cid           read a vmdk whose parent has changed since it was made

If the second word is both a tag of IMAGE and a file, it is the tag; write ./FILE for the file.

Exit code: 0 also if something changed, 1 error, 2 wrong usage.

Example:
  vimgfs diff disk.qcow2 before-upgrade
`
