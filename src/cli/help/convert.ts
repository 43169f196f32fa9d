/** The help of `vimgfs convert`. */
export const HELP = `Usage: vimgfs convert [OPTION…] SRC… DST

Copies the disk of SRC, an image or IMAGE@SNAPSHOT, with all that it stands on, into the new image
DST. Holes and zeros take no space there. DST appears when it is whole and on the disk; before that
nothing is there, whatever happens. SRC may be of any format ({readable}).
Several SRC become one disk, one after the other.

  -f, --format F           format of SRC (found by its bytes)
  -O, --output-format F    format of DST: {creatable} (raw)
  -o NAME=VALUE,…          options of DST; -o help lists those of -O F
  -c, --compress           store the data compressed, on up to four processors (more with the
                           variable UV_THREADPOOL_SIZE=N)
  -l, --snapshot TAG       the same as SRC@TAG; also snapshot.name=TAG, snapshot.id=ID
  -B, --base IMAGE         DST stands on IMAGE, and stores only what differs from it. A relative name
                           is relative to the folder of DST.
  -F, --base-format F      format of IMAGE (found by its bytes)
      --bitmaps            DST, a qcow2 image, gets the persistent bitmaps of SRC, too;
                           --skip-broken-bitmaps leaves out those that were not closed
  -n, --no-create          write into DST, an image or a block device that is large enough already;
                           -O then says its format (found by its bytes)
  -S, --sparse SIZE        how many zeros in a row take no space (4k; more than 2M count as 2M); 0 stores all
      --force              replace DST if it is there
      --verify             read DST again and compare it with SRC
      --salvage            where SRC is damaged, write zeros, list the places and end with 3
  -p, --progress           show progress also where standard error is no terminal
  -q, --quiet              never show it. SIGUSR1 prints it once.
  -U, --force-share        read SRC also while another program writes it: what is read may be torn
      --allow-path DIR     images may also name files below DIR (their own folders)
      --ignore-cid         read a vmdk whose parent has changed since
      --passphrase-file F  passphrase of SRC; one option for each encrypted layer
      --target-passphrase-file F
                           passphrase of DST (-o encrypt.format=luks, or -n)
  -m N, -W, -C, -t MODE, -T MODE, --target-is-zero
                           taken for qemu-img's sake; they change nothing: all is written in the
                           fastest way, and is on the disk at the end

On xfs and btrfs, data are shared with SRC where both store them plain: that takes no time and no
space, and zeros in them are not searched.

Exit codes: 0 done; 1 not done; 2 wrong usage; 3 done, but parts of SRC were lost (--salvage).

Example:
  vimgfs convert -O vmdk -o subformat=streamOptimized disk.qcow2@before-upgrade disk.vmdk
`
