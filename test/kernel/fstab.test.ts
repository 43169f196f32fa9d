/** Mounting by mount(8), by fstab and by autofs. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  letGo,
  attemptIn,
  HERE,
  MAIN,
  mount,
  mountFolder,
  noFuse,
  noLibfuse,
  overLibfuse,
  runIn,
  sampleImage,
  sharedFolder,
  until,
  serversOf,
} from '../support/mount.js'
import { needs, needsRoot } from '../support/run.js'

const SAMPLE = sampleImage(t)

/** Runs a script in a mount namespace where the command and its links for mount(8) are installed. */
const installed = (script: string) =>
  attemptIn(HERE, 'unshare', [
    ...['--mount', '--propagation', 'private', 'sh', '-e', '-c'],
    [
      letGo(),
      'mount -t tmpfs none /usr/local/bin',
      `printf '#!/bin/sh\\nexec ${process.execPath} ${MAIN} "$@"\\n' > /usr/local/bin/vimgfs`,
      'chmod +x /usr/local/bin/vimgfs',
      // /sbin, with changes that only this namespace sees, and a table of libmount's own.
      'mount -t tmpfs none /media',
      'mkdir /media/upper /media/work /media/run',
      'mount -t overlay -o lowerdir=/usr/sbin,upperdir=/media/upper,workdir=/media/work none /usr/sbin',
      'mkdir -p /run/mount',
      'mount --bind /media/run /run/mount',
      script,
    ].join('\n'),
  ])

const LINKED = `for name in mount umount mount.fuse umount.fuse; do ln -s ${MAIN} /usr/sbin/$name.vimgfs; done`
/** Prints what the list of mounts says of a folder. */
const flagsOf = (folder: string) =>
  `awk '$5 == "${folder}" { print "flags=" $6 }' /proc/self/mountinfo`

t.test('by fstab', { ...needsRoot(), ...needs('mount.fuse3') }, async t => {
  // The options of the line, and what the list of mounts says.
  const cases: [string, RegExp][] = [
    ['defaults', /^rw,relatime .* rw,/],
    ['ro,nofail,auto,_netdev,x-systemd.automount,x-a=b,comment=c', /^ro,relatime /],
    ['user,noauto', /^rw,nosuid,nodev,noexec,relatime /],
    ['users,exec', /^rw,nosuid,nodev,relatime /],
    ['owner', /^rw,nosuid,nodev,relatime /],
    ['noexec,sync', /^rw,noexec,relatime .* rw,sync,/],
    ['noatime,lazytime', /^rw,noatime .* rw,lazytime,/],
    ['strictatime', /^rw - /],
    ['allow_other,uid=5,umask=022', /allow_other/],
  ]
  for (const [options, expected] of cases) {
    const folder = mountFolder(t)
    const fstab = join(folder, '..', 'fstab')
    writeFileSync(fstab, `${SAMPLE} ${folder} fuse.vimgfs ${options} 0 0\n`)
    const line = `awk '$5 == "${folder}"' /proc/self/mountinfo | cut -d' ' -f6-`
    const { code, stdout, stderr } = await installed(
      `mount -T ${fstab} ${folder}\n${line}\nls ${folder}/disk.raw\numount ${folder}`,
    )
    t.equal(code, 0, stderr)
    t.match(stdout, expected, options)
    t.match(stdout, `${folder}/disk.raw`)
    t.ok(await until(() => serversOf(folder).length === 0))
  }
})

t.test('mount -t vimgfs, mount -a and umount', { ...needsRoot() }, async t => {
  const folder = mountFolder(t)
  const fstab = join(folder, '..', 'fstab')
  const line = (image: string, options: string) =>
    `echo '${image} ${folder} vimgfs ${options} 0 0' > ${fstab}`
  const steps = [
    LINKED,
    `mkdir ${folder},b`,
    // Options of the command, one with a comma in its value.
    `mount -t vimgfs -o 'ro,threads=1,log-level=warn,allow-path=${folder}\\,b,format=qcow2' ${SAMPLE} ${folder}`,
    `${flagsOf(folder)}; grep -o uhelper=vimgfs /run/mount/utab`,
    `umount ${folder}; wc -l < /run/mount/utab`,
    // Twice, by fstab.
    line(SAMPLE, 'nofail,user,_netdev,x-systemd.automount'),
    `mount -a -T ${fstab}; mount -a -T ${fstab}; ${flagsOf(folder)}`,
    // umount(8) returns when the server has ended.
    `server=$(awk -v RS=, -F: '/"pid"/ { print $2 + 0 }' ${folder}/.vimgfs/status.json)`,
    `echo written | dd of=${folder}/disk.raw conv=notrunc status=none; umount ${folder}`,
    `[ ! -e /proc/$server ] || grep -q '^State:.Z' /proc/$server/status`,
    // An image that is not there.
    line('/no/disk.qcow2', 'nofail'),
    `mount -a -T ${fstab}; echo nofail=$?`,
    line('/no/disk.qcow2', 'defaults'),
    `mount -a -T ${fstab} || echo missing=$?`,
    `mount -t vimgfs -o partitons ${SAMPLE} ${folder} || echo unknown=$?`,
    `mount -s -t vimgfs -o partitons,ro ${SAMPLE} ${folder}; vimgfs umount ${folder}`,
    `mount -f -t vimgfs ${SAMPLE} ${folder}; grep -c fuse.vimgfs /proc/self/mountinfo || true`,
  ]
  const { code, stdout, stderr } = await installed(steps.join('\n'))
  t.equal(code, 0, stderr)
  t.same(stdout.trim().split('\n'), [
    'flags=ro,nosuid,nodev,relatime',
    'uhelper=vimgfs',
    '0',
    'flags=rw,nosuid,nodev,noexec,relatime',
    'nofail=0',
    'missing=32',
    'unknown=1',
    '0',
  ])
  t.same(stderr.trim().split('\n'), [
    'vimgfs: /no/disk.qcow2: it cannot be opened: no such file; look at the name',
    'vimgfs: unknown mount option "partitons"; did you mean partitions?',
  ])
})

t.test('mount -o remount', { ...needsRoot() }, async t => {
  const folder = mountFolder(t)
  const image = sampleImage(t)
  const write = `echo written | dd of=${folder}/disk.raw conv=notrunc status=none`
  const steps = [
    LINKED,
    `mount -t vimgfs -o noexec ${image} ${folder}`,
    write,
    `mount -o remount,ro ${folder}; ${flagsOf(folder)}`,
    // The image is as after unmounting.
    `vimgfs check --repair leaks ${image} 2>&1 || true`,
    `cmp -n 8 ${folder}/disk.raw - << end\nwritten\nend`,
    `${write} 2> /dev/null || echo refused`,
    `vimgfs snapshot create ${image} tag || echo snapshot=$?`,
    `vimgfs list | awk '$1 == "${folder}" { print $4, $NF }'`,
    `mount -o remount,rw ${folder}; ${flagsOf(folder)}`,
    write,
    `vimgfs snapshot create ${image} tag`,
    // While a file is open for writing.
    `exec 3<> ${folder}/disk.raw; mount -o remount,ro ${folder} || echo busy=$?; exec 3>&-`,
    `umount ${folder}`,
    `mount -t vimgfs -o ro ${image} ${folder}`,
    `mount -o remount,rw ${folder} || echo ro=$?; ${flagsOf(folder)}`,
    `umount ${folder}`,
  ]
  const { code, stdout, stderr } = await installed(steps.join('\n'))
  t.equal(code, 0, stderr)
  t.same(
    stdout
      .trim()
      .split('\n')
      .filter(line => !line.startsWith(`vimgfs: ${image}`)),
    [
      'flags=ro,nosuid,nodev,noexec,relatime',
      'refused',
      'snapshot=1',
      'ro ok',
      'flags=rw,nosuid,nodev,noexec,relatime',
      'busy=32',
      'ro=32',
      'flags=ro,nosuid,nodev,relatime',
    ],
  )
  t.match(stderr, /: its mount on .* has been made read-only; mount -o remount,rw /)
  t.match(stderr, /has a file of it open for writing, so it stays writable/)
  t.match(stderr, /is mounted on .* for reading only/)
})

t.test('the lines of README.md for fstab', { ...needsRoot() }, async t => {
  const folder = mountFolder(t)
  const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8')
  const [, commands = ''] = /at every start.*?```\n(.*?)```/s.exec(readme) ?? []
  t.match(commands, /\/etc\/fstab/)
  const shown = commands
    .replaceAll('/srv/disk.qcow2', SAMPLE)
    .replaceAll('/mnt/x', folder)
    .replaceAll('/etc/fstab', `${folder}/../fstab`)
    .replace(/^mount /m, `mount -T ${folder}/../fstab `)
  const { code, stdout, stderr } = await installed(
    `ln -sf ${MAIN} /usr/local/bin/vimgfs\n${shown}\nls ${folder}\numount ${folder}\n! grep uhelper /run/mount/utab`,
  )
  t.equal(code, 0, stderr)
  t.match(stdout, 'disk@before-upgrade.raw')
})

t.test('by autofs', { ...needsRoot(), ...needs('automount') }, async t => {
  const folder = sharedFolder(t)
  const top = join(folder, 'top')
  writeFileSync(join(folder, 'auto.map'), `disk -fstype=fuse.vimgfs,ro :${SAMPLE}\n`)
  writeFileSync(join(folder, 'auto.master'), `${top} ${folder}/auto.map --timeout=60\n`)
  const { code, stdout, stderr } = await installed(
    [
      `automount -f -p ${folder}/pid ${folder}/auto.master & daemon=$!`,
      `for i in $(seq 1000); do ! grep -q ' ${top} ' /proc/self/mountinfo || break; sleep 0.1; done`,
      `rc=0; timeout -s KILL 300 ls ${top}/disk || rc=$?`,
      `umount -l ${top}/disk || true; kill -KILL $daemon; umount -l ${top}; exit $rc`,
    ].join('\n'),
  )
  t.equal(code, 0, stderr)
  t.match(stdout, 'disk.raw')
})

t.test('options that are honoured', noFuse(), async t => {
  const syncs = async (t: Test, place = HERE) => {
    const { folder, file } = await mount(t, sampleImage(t), { place, args: ['-o', 'sync,noexec'] })
    const list = await runIn(place, 'cat', ['/proc/self/mountinfo'])
    const line = list.split('\n').find(line => line.includes(` ${folder} `))
    t.match(line, /noexec.* rw,sync,/)
    await runIn(place, 'dd', [
      ...['if=/dev/zero', `of=${file('disk.raw')}`, 'bs=4k', 'count=3', 'conv=notrunc'],
    ])
    const stats = JSON.parse(await runIn(place, 'cat', [file('.vimgfs/stats.json')]))
    t.ok(stats.requests.FSYNC >= 3, 'each write is made durable')
  }
  await t.test('direct', t => syncs(t))
  await t.test('libfuse', noLibfuse(), t => syncs(t, overLibfuse(HERE)))
})
