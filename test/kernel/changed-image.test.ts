/** Somebody changes an image while it is mounted for reading: the mount answers errors, never a mixture. */
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptIn,
  HERE,
  type Mount,
  mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { quickClock } from '../peers/quick-clock.js'
import { needs, run } from '../support/run.js'

const skip = { ...needs('qemu-img', 'qemu-io'), ...noFuse() }

/** An image that is open without locks, as on a file system that has none. */
const unlocked = (image: string) => [
  '--image-opts',
  `driver=qcow2,file.driver=file,file.filename=${image},file.locking=off`,
]

type Change = (image: string) => Promise<unknown>

const CHANGES: Record<string, Change> = {
  'a cluster is written into it': image =>
    run('dd', [
      'if=/dev/urandom',
      `of=${image}`,
      'bs=64k',
      'count=1',
      'seek=5',
      'conv=notrunc',
      'status=none',
    ]),
  'another image is copied over it': async image => {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', `${image}.new`, '2M'])
    await run('cp', [`${image}.new`, image])
  },
  'a copy of it takes its path': async image => {
    await run('cp', ['-a', image, `${image}.new`])
    await run('mv', [`${image}.new`, image])
  },
  'a snapshot is taken without locks': image =>
    run('qemu-img', ['snapshot', '-c', 'later', ...unlocked(image)]),
}

async function mounted(t: Test, place: Place): Promise<{ image: string; at: Mount }> {
  const image = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M'])
  await run('qemu-io', ['-c', 'write -q -P 1 0 1M', image])
  await run('qemu-img', ['snapshot', '-c', 'first', image])
  const at = await mount(t, image, { place, args: READ_ONLY })
  return { image, at }
}

const read = (at: Mount, name: string, ...flags: string[]) =>
  attemptIn(at.place, 'dd', [`if=${at.file(name)}`, 'of=/dev/null', 'bs=64k', 'count=1', ...flags])

const statusOf = async ({ place, file }: Mount) =>
  JSON.parse((await attemptIn(place, 'cat', [file('.vimgfs/status.json')])).stdout)

for (const place of [HERE, overLibfuse(HERE)]) {
  const unless = place.transport ? { ...skip, ...noLibfuse() } : skip
  // Only noticing differs between the changes, and the transports share that.
  const changes = Object.entries(CHANGES).slice(0, place.transport ? 1 : undefined)
  for (const [what, change] of changes) {
    t.test(`${what}: ${place.name}`, unless, async t => {
      const { image, at } = await mounted(t, place)
      const names = readdirSync(at.folder)
      // The kernel has them in its cache now.
      for (const name of names) t.equal((await read(at, name)).code, 0)
      t.match(await statusOf(at), { changed: false })
      await change(image)
      for (const name of names) {
        t.ok(await until(async () => (await read(at, name)).code !== 0), `${name} ends`)
        for (const flags of [[], ['iflag=direct']]) {
          t.match((await read(at, name, ...flags)).stderr, 'Input/output error')
        }
      }
      t.same(readdirSync(at.folder), names, 'listing works')
      t.equal((await attemptIn(place, 'stat', [at.file('disk.raw')])).code, 0)
      t.match(await statusOf(at), { changed: true, removed: what.includes('its path') })
      t.equal(at.log().match(/another program has changed the image/g)?.length, 1, 'one line')
      t.notMatch(at.log(), /"msg":"(READ|OPEN)/, 'and no damage')
      const refreshed = await vimgfs(place, ['refresh', at.folder])
      t.same([refreshed.code, refreshed.stderr], [0, ''])
      t.match(await statusOf(at), { changed: false, removed: false })
      const model = `${image}.raw`
      await run('qemu-img', ['convert', '-U', '-O', 'raw', image, model])
      await runIn(place, 'cmp', [model, at.file('disk.raw')])
      t.equal((await vimgfs(place, ['umount', at.folder])).code, 0)
    })
  }

  t.test(`an image that cannot be opened again: ${place.name}`, unless, async t => {
    const { image, at } = await mounted(t, place)
    await run('cp', ['-a', image, `${image}.kept`])
    await run('sh', ['-c', `echo QFI > ${image}`])
    t.ok(await until(async () => (await read(at, 'disk.raw')).code !== 0), 'it ends')
    const refused = await vimgfs(place, ['refresh', at.folder])
    t.equal(refused.code, 1)
    t.match(refused.stderr, /^vimgfs: [^\n]*disk\.qcow2: [^\n]*\n$/, 'one line')
    t.match((await read(at, 'disk.raw')).stderr, 'Input/output error')
    await run('mv', [`${image}.kept`, image])
    t.equal((await vimgfs(place, ['refresh', at.folder])).code, 0)
    for (const name of readdirSync(at.folder)) t.equal((await read(at, name)).code, 0)
  })
}

for (const place of [HERE, overLibfuse(HERE)]) {
  const unless = place.transport ? { ...skip, ...noLibfuse() } : skip
  t.test(`what was written to scratch copies stays: ${place.name}`, unless, async t => {
    const { image, at: readOnly } = await mounted(t, HERE)
    await vimgfs(HERE, ['umount', readOnly.folder])
    const at = await mount(t, image, { place, args: ['-o', 'scratch'] })
    const dd = (name: string, isWriting: boolean, bytes: number, offset: number) =>
      attemptIn(place, 'dd', [
        ...(isWriting
          ? ['if=/dev/urandom', `of=${at.file(name)}`, 'conv=notrunc', 'oflag=direct']
          : []),
        ...(isWriting ? [] : [`if=${at.file(name)}`, 'of=/dev/null', 'iflag=direct']),
        ...[`bs=${bytes}`, 'count=1', `${isWriting ? 'seek' : 'skip'}=${offset / bytes}`],
      ])
    const [disk, snapshot] = ['disk.raw', 'disk@first.raw'] as const
    t.equal((await dd(disk, true, 65_536, 0)).code, 0)
    t.equal((await dd(snapshot, true, 8192, 8192)).code, 0)
    await CHANGES['a cluster is written into it']?.(image)
    await until(async () => (await statusOf(at)).changed === true)
    for (const [name, bytes, offset] of [
      [disk, 65_536, 0],
      [disk, 4096, 8192],
      [snapshot, 8192, 8192],
    ] as const) {
      t.match(
        await dd(name, false, bytes, offset),
        { code: 0 },
        `${bytes} bytes at ${offset} of ${name}`,
      )
    }
    for (const [name, bytes, offset] of [
      [disk, 131_072, 0],
      [disk, 4096, 131_072],
      [snapshot, 16_384, 0],
    ] as const) {
      const { stderr } = await dd(name, false, bytes, offset)
      t.match(stderr, /Input\/output error/, `${bytes} bytes at ${offset} of ${name}`)
    }
    // The rest of the unit would come from the changed image.
    t.match((await dd(disk, true, 512, 262_144)).stderr, /Input\/output error/)
    t.match((await dd(disk, false, 4096, 262_144)).stderr, /Input\/output error/)
    t.match(await dd(disk, true, 4096, 262_144), { code: 0 }, 'a whole unit needs nothing of it')
    t.match(await dd(disk, true, 512, 262_656), { code: 0 })
    t.match(await dd(disk, false, 4096, 262_144), { code: 0 })
  })
}

t.test('an encrypted image keeps its key, and no other image gets it', skip, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2')
  const make = async (file: string, passphrase: string, value: number) => {
    const secret = ['--object', `secret,id=s,data=${passphrase}`]
    const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
    const create = ['create', '-q', ...secret, '-f', 'qcow2', '-o', options, file, '1M']
    await run('qemu-img', create, { env: quickClock() })
    const opened = `driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=${file}`
    const write = ['-c', `write -q -P ${value} 0 1M`]
    await run('qemu-io', [...secret, '--image-opts', opened, ...write])
  }
  await make(image, 'one', 1)
  const other = join(folder, 'other.qcow2')
  await make(other, 'two', 2)
  const key = join(folder, 'key')
  writeFileSync(key, 'one')
  const at = await mount(t, image, { args: [...READ_ONLY, '--passphrase-file', key] })
  const first = async () =>
    (await attemptIn(HERE, 'od', ['-An', '-tx1', '-N1', at.file('disk.raw')])).stdout
  t.equal((await first()).trim(), '01')
  await run('touch', [image])
  t.ok(await until(async () => (await read(at, 'disk.raw')).code !== 0), 'it ends')
  t.equal((await vimgfs(HERE, ['refresh', at.folder])).code, 0)
  t.equal((await first()).trim(), '01')
  await run('cp', [other, image])
  const refused = await vimgfs(HERE, ['refresh', at.folder])
  t.equal(refused.code, 1)
  t.match(refused.stderr, /may have another key now; unmount it/)
})

t.test('compressed clusters come from the new file', skip, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2')
  const make = async (file: string, value: number) => {
    const raw = join(folder, 'raw')
    // Every cluster has a number of its own, so that none is compressed to nothing.
    const clusters = Array.from({ length: 64 }, (_, i) => Buffer.alloc(65536, `${value} ${i} `))
    writeFileSync(raw, Buffer.concat(clusters))
    await run('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, file])
  }
  await make(image, 1)
  const at = await mount(t, image, { args: READ_ONLY })
  // One request of many clusters starts the thread that helps to decompress.
  const copy = join(folder, 'copy')
  const read = () =>
    run('dd', [`if=${at.file('disk.raw')}`, `of=${copy}`, 'bs=1M', 'iflag=direct', 'status=none'])
  for (let round = 2; round < 5; round++) {
    for (let again = 0; again < 3; again++) {
      await read()
      await run('cmp', [join(folder, 'raw'), copy])
    }
    await make(`${image}.new`, round)
    await run('mv', [`${image}.new`, image])
    t.equal((await vimgfs(HERE, ['refresh', at.folder])).code, 0)
  }
  await read()
  await run('cmp', [join(folder, 'raw'), copy])
})

t.test('after a refresh the status names the layers that there are now', skip, async t => {
  const { image, at } = await mounted(t, HERE)
  const base = join(image, '..', 'base.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', base, '1M'])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', `${image}.new`])
  t.equal((await statusOf(at)).layers.length, 1)
  await run('mv', [`${image}.new`, image])
  t.equal((await vimgfs(HERE, ['refresh', at.folder])).code, 0)
  t.match((await statusOf(at)).layers, [{ path: image }, { path: base, format: 'qcow2' }])
})

t.test('mounts that need no refresh, and what is no mount', skip, async t => {
  const { at, image } = await mounted(t, HERE)
  t.equal((await vimgfs(HERE, ['refresh', at.folder])).code, 0, 'without a change')
  t.equal((await read(at, 'disk@first.raw', 'iflag=direct')).code, 0)
  await vimgfs(HERE, ['umount', at.folder])
  const none = await vimgfs(HERE, ['refresh', at.folder])
  t.same(
    [none.code, none.stderr],
    [1, `vimgfs: ${at.folder}: no image is mounted there by vimgfs\n`],
  )
  const written = await mount(t, image)
  const refused = await vimgfs(HERE, ['refresh', written.folder])
  t.equal(refused.code, 1)
  t.match(refused.stderr, /it is mounted for writing, so nothing but the mount changes it/)
})
