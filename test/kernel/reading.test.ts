/** Programs read a mount, and get what qemu-img makes of the same image. */
import { closeSync, fstatSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  attemptIn,
  call,
  everyPlace,
  HERE,
  isRunning,
  mount,
  mountFolder,
  noFuse,
  READ_ONLY,
  runIn,
  sharedFolder,
  vimgfs,
  withoutNotices,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'
import { convert, makeImage, sha256 } from './images.js'

const bytesOf = (pieces: [number, number][]): number =>
  pieces.reduce((sum, [start, end]) => sum + end - start, 0)
const skip = { ...needs('qemu-img', 'qemu-io', 'getfattr'), ...noFuse() }

t.test('a disk and its snapshots', skip, async t => {
  const folder = sharedFolder(t)
  const { file, sizeBytes, snapshots } = await makeImage(folder)
  const files = [
    { name: 'disk.raw', raw: await convert(file, join(folder, 'disk')) },
    ...(await Promise.all(
      snapshots.map(async snapshot => ({
        name: `disk@${snapshot}.raw`,
        raw: await convert(file, join(folder, snapshot), snapshot),
      })),
    )),
  ]

  for (const place of await everyPlace(t)) {
    const isDirect = place.transport !== 'libfuse'
    // libfuse has times in milliseconds.
    const shown = (ns: bigint) => String(isDirect ? ns : ns - (ns % 1_000_000n))
    await t.test(`by ${place.name}`, async t => {
      const { file: inMount, folder: mnt } = await mount(t, file, { place, args: READ_ONLY })
      const in_ = (command: string, ...args: string[]) => runIn(place, command, args)

      await t.test('names', async t => {
        t.equal(await in_('ls', '-A', mnt), 'disk.raw\ndisk@one.raw\ndisk@two.raw\n')
        t.equal(await in_('ls', '-A', inMount('.vimgfs')), 'stats.json\nstatus.json\n')
        t.match(
          await in_('df', '--output=size,avail', '-B1', mnt),
          String(Math.ceil(sizeBytes / 4096) * 4096),
        )
        const used = Number((await in_('df', '--output=used', '-B1', mnt)).split('\n')[1])
        const taken = Math.min(sizeBytes, statSync(file).blocks * 512)
        t.ok(Math.abs(used - taken) <= 8192, `${used} bytes used, the image takes ${taken}`)
      })

      await t.test('attributes', async t => {
        const image = statSync(file, { bigint: true })
        const info = JSON.parse(await run('qemu-img', ['info', '--output=json', file]))
        const map: { length: number; data: boolean }[] = JSON.parse(
          await run('qemu-img', ['map', '--output=json', file]),
        )
        const allocated = map
          .filter(piece => piece.data)
          .reduce((sum, piece) => sum + piece.length, 0)
        const disk = await call(place, 'stat', inMount('disk.raw'))
        t.match(disk, {
          size: String(sizeBytes),
          blocks: String(allocated / 512),
          mtimeNs: shown(image.mtimeNs),
          mode: String(0o100444),
          uid: String(place.uid),
          gid: String(place.uid),
          nlink: '1',
        })
        for (const { name, 'date-sec': seconds, 'date-nsec': nanoseconds } of info.snapshots) {
          const snapshot = await call(place, 'stat', inMount(`disk@${name}.raw`))
          const time = shown(BigInt(seconds) * 10n ** 9n + BigInt(nanoseconds))
          t.match(snapshot, { size: String(sizeBytes), mtimeNs: time, mode: String(0o100444) })
          t.ok(Number(snapshot.blocks) * 512 < sizeBytes, 'its holes show')
          // Linux 6.6 and later ask.
          t.ok(
            ['0', time].includes(snapshot.birthtimeNs) || snapshot.birthtimeNs === snapshot.ctimeNs,
          )
        }
        t.match(await call(place, 'stat', mnt), {
          mode: String(0o040555),
          mtimeNs: shown(image.mtimeNs),
        })
      })

      await t.test('bytes', async t => {
        for (const { name, raw } of files) {
          await in_('cmp', inMount(name), raw)
          const [sum] = (await in_('sha256sum', inMount(name))).split(' ')
          t.equal(sum, sha256(readFileSync(raw)), name)
        }
      })

      await t.test('dd', async t => {
        const expected = sha256(readFileSync(files[0]!.raw))
        const from = `if=${inMount('disk.raw')}`
        for (const how of [
          'bs=1M',
          'bs=1M iflag=direct',
          'bs=12345',
          'bs=4k iflag=direct count=64',
        ]) {
          const to = join(sharedFolder(t), 'copy')
          await in_('dd', from, `of=${to}`, 'status=none', ...how.split(' '))
          const copy = readFileSync(to)
          if (how.includes('count'))
            t.same(copy, readFileSync(files[0]!.raw).subarray(0, copy.length), how)
          else t.equal(sha256(copy), expected, how)
        }
      })

      await t.test('copies keep their holes, also the one at the end', async t => {
        for (const { name, raw } of files) {
          const to = sharedFolder(t)
          const data = await call(place, 'data', inMount(name))
          if (isDirect) t.ok(data.length >= 3 && data.at(-1)[1] < sizeBytes, 'there are some')
          for (const sparse of ['auto', 'always']) {
            const copy = join(to, sparse)
            await in_('cp', `--sparse=${sparse}`, inMount(name), copy)
            await run('cmp', [copy, raw])
            const { blocks, size } = statSync(copy)
            t.equal(size, sizeBytes)
            // Within its data cp leaves out zeros, too.
            t.ok(blocks * 512 <= bytesOf(data), `${name} with --sparse=${sparse}`)
          }
          const copied = await call(HERE, 'data', join(to, 'auto'))
          t.ok(copied.at(-1)[1] <= data.at(-1)[1], 'the hole at the end')
        }
      })

      await t.test('SEEK_DATA and SEEK_HOLE agree with qemu-img map', async t => {
        const map: { start: number; length: number; data: boolean }[] = JSON.parse(
          await run('qemu-img', ['map', '--output=json', file]),
        )
        if (!isDirect) {
          t.same(await call(place, 'data', inMount('disk.raw')), [[0, sizeBytes]], 'no hole')
          return
        }
        const expected: [number, number][] = []
        for (const { start, length, data } of map) {
          if (!data) continue
          const last = expected.at(-1)
          if (last?.[1] === start) last[1] += length
          else expected.push([start, start + length])
        }
        t.same(await call(place, 'data', inMount('disk.raw')), expected)
      })

      await t.test('a mapping', async t => {
        const expected = sha256(readFileSync(files[1]!.raw))
        t.equal(await call(place, 'mapped', inMount(files[1]!.name)), expected)
      })

      await t.test('eight readers at once', async t => {
        const expected = sha256(readFileSync(files[2]!.raw))
        for (const pieceBytes of [64 * 1024, 12_345]) {
          t.equal(await call(place, 'scattered', inMount(files[2]!.name), 8, pieceBytes), expected)
        }
      })

      await t.test('extended attributes', async t => {
        if (!isDirect) return
        const get = (name: string, key: string) =>
          in_(
            'getfattr',
            '--absolute-names',
            '--only-values',
            '-n',
            `user.vimgfs.${key}`,
            inMount(name),
          )
        t.equal(await get('disk.raw', 'format'), 'qcow2')
        t.equal(await get('disk@two.raw', 'snapshot-id'), '2')
        t.equal(await get('disk@two.raw', 'snapshot-name'), 'two')
        t.match(await get('disk@two.raw', 'snapshot-date'), /^20\d\d-.*Z$/)
        const all = await in_('getfattr', '--absolute-names', '-d', inMount('disk.raw'))
        t.match(all, 'user.vimgfs.virtual-size="50335232"')
        t.notMatch(all, 'snapshot-id')
      })

      await t.test('nothing can be changed', async t => {
        const changes = await call(place, 'changes', mnt, inMount('disk.raw'))
        const { fallocate, ...others } = changes
        t.equal(fallocate, 'EBADF')
        t.equal((await attemptIn(place, 'test', ['-x', inMount('disk.raw')])).code, 1, 'no program')
        for (const [name, error] of Object.entries(others)) t.equal(error, 'EROFS', name)
      })

      await t.test('status and statistics', async t => {
        const read = async (name: string) =>
          JSON.parse(await in_('cat', inMount(`.vimgfs/${name}`)))
        const status = await read('status.json')
        t.match(status, { image: file, mountpoint: mnt, readOnly: true, snapshots: 2 })
        t.match(status.layers, [{ path: file, format: 'qcow2' }])
        const stats = await read('stats.json')
        t.ok(stats.requests.READ > 100 && stats.requests[isDirect ? 'LOOKUP' : 'GETATTR'] > 0)
        t.ok(stats.bytesRead >= 3 * sizeBytes)
        t.ok(stats.caches.metadata.hits > 0 && stats.caches.clusters.misses > 0)
        t.ok(stats.latency.read.samples > 0 && stats.latency.read.p50 <= stats.latency.read.max)
        t.ok(stats.memory.rssBytes > 0)
        t.ok((await read('stats.json')).requests.OPEN > stats.requests.OPEN, 'made anew each time')
      })

      // Only root may raise it.
      if (place.uid === 0)
        await t.test('readahead', async t => {
          const line = readFileSync('/proc/self/mountinfo', 'utf8')
            .split('\n')
            .find(l => l.includes(mnt))
          const device = line?.split(' ')[2]
          t.ok(
            Number(readFileSync(`/sys/class/bdi/${device}/read_ahead_kb`)) >= 1024,
            'above 128 KiB',
          )
        })

      await t.test('unmounting ends the server and closes the image', async t => {
        const again = mountFolder(t, place)
        const { pid } = await mount(t, file, { place, folder: again, args: READ_ONLY })
        const { code, stdout, stderr } = await vimgfs(place, ['umount', again])
        t.same([code, stdout, withoutNotices(stderr)], [0, '', ''])
        t.notOk(isRunning(pid))
      })
    })
  }
})

t.test('an image from before 1970', skip, async t => {
  const image = join(sharedFolder(t), 'disk.raw')
  writeFileSync(image, Buffer.alloc(4096))
  await run('touch', ['-d', '1960-05-05 12:00:00.25 UTC', image])
  const { file } = await mount(t, image, { args: READ_ONLY })
  const { mtimeNs, ctimeNs } = await call(HERE, 'stat', file('disk.raw'))
  t.same([mtimeNs, ctimeNs], ['-304775999750000000', '-304775999750000000'])
})

t.test('a raw image: its holes are its own', skip, async t => {
  const folder = sharedFolder(t)
  const { file } = await makeImage(folder)
  const raw = await convert(file, join(folder, 'plain.img'))
  const fd = openSync(raw, 'r')
  t.teardown(() => closeSync(fd))
  const { file: inMount } = await mount(t, raw, { args: READ_ONLY })
  await run('cmp', [inMount('plain.raw'), raw])
  const { size, blocks } = fstatSync(fd)
  t.match(await call(HERE, 'stat', inMount('plain.raw')), {
    size: String(size),
    blocks: String(blocks),
  })
  t.same(await call(HERE, 'data', inMount('plain.raw')), await call(HERE, 'data', raw))
})
