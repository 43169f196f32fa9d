/** Mounting by mount(8), by fstab and by autofs. */
import { writeFileSync } from 'node:fs'
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

/** Runs a script in a mount namespace where the command is installed. */
const installed = (script: string) =>
  attemptIn(HERE, 'unshare', [
    ...['--mount', '--propagation', 'private', 'sh', '-e', '-c'],
    [
      letGo(),
      'mount -t tmpfs none /usr/local/bin',
      `printf '#!/bin/sh\\nexec ${process.execPath} ${MAIN} "$@"\\n' > /usr/local/bin/vimgfs`,
      'chmod +x /usr/local/bin/vimgfs',
      script,
    ].join('\n'),
  ])

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
