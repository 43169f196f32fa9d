/**
 * What is given instead of a good image: one line that names the file and what to do, exit code 1,
 * soon, and nothing mounted. The tables of damaged headers are tested where they are read.
 */
import {
  chmodSync,
  closeSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { AT, luksContainer, SLOT_AT, slotAt } from '../crypto/luks-builder.js'
import { buildCow, type Layout } from '../fixtures/cow-builder.js'
import { noise } from '../fixtures/model.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import {
  HERE,
  isMounted,
  mountFolder,
  NO_LOG,
  noFuse,
  ordinaryUser,
  type Place,
  serversOf,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { needsRoot, run } from '../support/run.js'
import { childrenCpuMs } from '../support/cpu.js'

const SAMPLE = new URL('../../samples/disk.qcow2', import.meta.url).pathname
const SOON_MS = 5000
const SMALL: ImageSpec = { clusterBits: 16, sizeBytes: 2 ** 20 }

interface Case {
  title: string
  /** Makes the image in `folder`; its path. */
  make: (folder: string) => string | Promise<string>
  message: RegExp
  args?: string[]
}

let cases = 0

async function check(t: Test, { title, make, message, args = [] }: Case, place: Place = HERE) {
  await t.test(title, async t => {
    const image = await make(sharedFolder(t))
    const folder = mountFolder(t, place)
    // Both open an image alike, and one process in front costs half.
    for (const how of [cases++ % 8 === 0 ? [] : ['-f']]) {
      const before = childrenCpuMs()
      const { code, stdout, stderr } = await vimgfs(place, [
        'mount',
        ...NO_LOG,
        ...how,
        ...args,
        image,
        folder,
      ])
      t.equal(code, 1)
      t.equal(stdout, '')
      t.match(stderr, message)
      t.match(stderr, /^vimgfs: [^\n]*\n$/, 'one line')
      t.ok(childrenCpuMs() - before < SOON_MS, 'soon')
      t.notOk(await isMounted(place, folder))
      t.ok(await until(() => serversOf(folder).length === 0), 'no server is left')
    }
  })
}

/** An image at `folder`/disk.qcow2. */
const built =
  (spec: Partial<ImageSpec>, change?: (bytes: Buffer) => void) =>
  (folder: string): string => {
    const file = join(folder, 'disk.qcow2')
    const bytes = buildImage({ ...SMALL, ...spec }).bytes()
    change?.(bytes)
    writeFileSync(file, bytes)
    return file
  }
/** An image at `folder`/disk.cow. */
const cow =
  (layout: Layout, change: (bytes: Buffer) => Buffer) =>
  (folder: string): string => {
    const backing = layout === 'uml-3' ? '/home/sam/base.raw' : ''
    const file = join(folder, 'disk.cow')
    writeFileSync(file, change(buildCow({ layout, sizeBytes: 2 ** 20, backing }).bytes))
    return file
  }
/** An image at `folder`/disk.qcow. */
const qcow =
  (change: (bytes: Buffer) => Buffer) =>
  (folder: string): string => {
    const file = join(folder, 'disk.qcow')
    writeFileSync(file, change(buildQcow({ sizeBytes: 2 ** 20 }).bytes))
    return file
  }
/** Behind the clusters of SMALL. */
const LUKS_AT = 2 ** 20
const LUKS = luksContainer({
  mode: 'xts',
  ivGenerator: 'plain64',
  ivHash: undefined,
  key: noise(64, 1),
  hash: 'sha256',
  passphrases: ['open sesame'],
})
const backed = (name: string, format = 'raw') => built({ backing: { name, format } })

t.test('no images', async t => {
  const cases: Case[] = [
    {
      title: 'a missing file',
      make: folder => join(folder, 'missing.qcow2'),
      message: /missing\.qcow2: it cannot be opened: no such file/,
    },
    {
      title: 'a folder',
      make: folder => folder,
      message: /this is a folder, not a disk image; name an image file/,
    },
    {
      title: 'a character device',
      make: () => '/dev/null',
      message: /\/dev\/null: this is a character device/,
    },
    {
      title: 'a FIFO',
      make: async folder => {
        await run('mkfifo', [join(folder, 'fifo')])
        return join(folder, 'fifo')
      },
      message: /fifo: this is a FIFO, not a disk image/,
    },
    {
      title: 'a link to nowhere',
      make: folder => {
        symlinkSync('nowhere', join(folder, 'link'))
        return join(folder, 'link')
      },
      message: /link: it cannot be opened: no such file/,
    },
    {
      title: 'a text',
      make: folder => {
        writeFileSync(join(folder, 'text.qcow2'), 'no image\n'.repeat(1000))
        return join(folder, 'text.qcow2')
      },
      message: /text\.qcow2: this is no qcow2 image.*--format raw/,
    },
    {
      title: 'an empty file',
      make: folder => {
        writeFileSync(join(folder, 'empty.img'), '')
        return join(folder, 'empty.img')
      },
      message: /empty\.img: this is no disk image: it has 0 bytes/,
    },
    {
      title: 'raw where qcow2 is asked for',
      args: ['--format', 'qcow2'],
      make: folder => {
        writeFileSync(join(folder, 'disk.img'), Buffer.alloc(4096))
        return join(folder, 'disk.img')
      },
      message: /disk\.img: this is no qcow2 image/,
    },
    {
      title: 'a file without a name',
      make: folder => {
        const file = join(folder, 'disk.raw')
        const fd = openSync(file, 'w+')
        t.teardown(() => closeSync(fd))
        rmSync(file)
        return `/proc/${process.pid}/fd/${fd}`
      },
      message: /fd\/\d+: it has been removed, or never had a name; copy it to a file/,
    },
    {
      title: 'a protocol',
      make: () => 'nbd:localhost:10809',
      message: /nbd:localhost:10809: it cannot be opened: no such file/,
    },
    {
      title: 'a name with a line break',
      make: () => '/no\nsuch',
      message: /\/no\\x0asuch: it cannot be opened/,
    },
  ]
  for (const one of cases) await check(t, one)
})

t.test('damaged images', async t => {
  const cases: Case[] = [
    {
      title: 'cut off in its header',
      make: folder => {
        const file = join(folder, 'disk.qcow2')
        copyFileSync(SAMPLE, file)
        truncateSync(file, 80)
        return file
      },
      message: /disk\.qcow2: the qcow2 header is cut off after 80 bytes; restore it/,
    },
    {
      title: 'cut off in its tables',
      make: folder => {
        const file = join(folder, 'disk.qcow2')
        copyFileSync(SAMPLE, file)
        truncateSync(file, 16384)
        return file
      },
      message: /disk\.qcow2: .* beyond the end of the file/,
    },
    {
      title: 'a disk of 2^63 bytes',
      make: built({}, bytes => bytes.writeBigUInt64BE(2n ** 63n, 24)),
      message: /disk\.qcow2: the disk is too large/,
    },
    {
      title: 'a feature that is not known',
      make: built({ incompatible: 1n << 40n }),
      message: /it uses incompatible features that are not known here: bit 40/,
    },
    {
      title: 'version 4',
      make: built({}, bytes => bytes.writeUInt32BE(4, 4)),
      message: /qcow2 has no version 4; versions 2 and 3 are read/,
    },
  ]
  for (const one of cases) await check(t, one)
})

t.test('backing files', async t => {
  const cases: Case[] = [
    {
      title: 'missing',
      make: backed('gone.img'),
      message:
        /disk\.qcow2: its backing file "gone\.img" cannot be opened: no such file; restore it.*rebase -u/,
    },
    {
      title: 'itself',
      make: backed('disk.qcow2', 'qcow2'),
      message: /the chain is a loop; name the right file/,
    },
    {
      title: 'itself by a link',
      make: folder => {
        symlinkSync('disk.qcow2', join(folder, 'link.qcow2'))
        return backed('link.qcow2', 'qcow2')(folder)
      },
      message: /the chain is a loop/,
    },
    {
      title: '/etc/shadow',
      make: backed('/etc/shadow'),
      message:
        /its backing file "\/etc\/shadow" lies outside the image's folder; allow it with --allow-path \/etc/,
    },
    {
      title: '/etc/shadow, by a way round',
      make: backed('../../etc/../etc/shadow'),
      message: /lies outside the image's folder|no such file/,
    },
    {
      title: '/etc/shadow, by a link',
      make: folder => {
        symlinkSync('/etc/shadow', join(folder, 'base.img'))
        return backed('base.img')(folder)
      },
      message: /its backing file "base\.img" lies outside the image's folder/,
    },
    {
      title: 'a FIFO',
      make: async folder => {
        await run('mkfifo', [join(folder, 'fifo')])
        return backed('fifo')(folder)
      },
      message: /its backing file "fifo" is a FIFO, not a regular file/,
    },
    { title: 'a folder', make: backed('.'), message: /its backing file "\." is a folder/ },
    {
      title: 'a device',
      args: ['--allow-path', '/dev'],
      make: backed('/dev/zero'),
      message: /its backing file "\/dev\/zero" is a character device/,
    },
    {
      title: 'a JSON description',
      make: backed('json:{"driver":"file","filename":"/etc/shadow"}'),
      message: /its backing file "json:.*is not a plain path but a protocol; only files are opened/,
    },
    {
      title: 'a network',
      make: backed('nbd:localhost:10809'),
      message: /"nbd:localhost:10809" is not a plain path/,
    },
    {
      title: 'a format that is not read',
      make: folder => {
        writeFileSync(join(folder, 'base.vhdx'), 'vhdxfile')
        return backed('base.vhdx', 'vhdx')(folder)
      },
      message:
        /its backing file "base\.vhdx" has the format "vhdx"; raw, cow, qcow, qcow2.* are read/,
    },
    {
      title: 'control characters in its name are shown, not obeyed',
      make: backed('\x1b[2Jgone'),
      message: /its backing file "\\x1b\[2Jgone" cannot be opened/,
    },
    {
      title: 'a data file that is missing',
      make: built({ dataFile: 'gone.data' }),
      message: /its data file "gone\.data" cannot be opened: no such file/,
    },
    {
      title: 'a chain that is longer than allowed',
      args: ['--max-chain', '2'],
      make: folder => {
        buildImage(SMALL).write(join(folder, 'a.qcow2'))
        buildImage({ ...SMALL, backing: { name: 'a.qcow2', format: 'qcow2' } }).write(
          join(folder, 'b.qcow2'),
        )
        return backed('b.qcow2', 'qcow2')(folder)
      },
      message: /its chain of backing files is longer than 2; raise --max-chain/,
    },
    {
      title: 'a folder to allow that is missing',
      args: ['--allow-path', '/no/such'],
      make: built({}),
      message: /\/no\/such: the folder of --allow-path cannot be used: no such file/,
    },
  ]
  for (const one of cases) await check(t, one)
})

t.test('what is allowed is read', noFuse(), async t => {
  const base = sharedFolder(t)
  writeFileSync(join(base, 'base.img'), Buffer.alloc(4096, 'b'))
  const image = backed(join(base, 'base.img'))(sharedFolder(t))
  const folder = mountFolder(t)
  const log = join(base, 'log')
  const args = ['mount', '--log-file', log, '--allow-path', base, image, folder]
  const { code, stderr } = await vimgfs(HERE, args)
  t.same({ code, stderr }, { code: 0, stderr: '' })
  t.equal(await run('head', ['-c4', join(folder, 'disk.raw')]), 'bbbb')
  t.equal(await run('ls', [folder]), 'disk.raw\ndisk@base.raw\n')
})

t.test('old images', async t => {
  const cases: Case[] = [
    {
      title: 'cow, cut off in its bitmap',
      make: cow('qemu-x86-64', bytes => bytes.subarray(0, 1100)),
      message: /disk\.cow: its bitmap ends at 1312, beyond the end of the file .*; restore it/,
    },
    {
      title: 'cow, cut off in its header',
      make: cow('uml-3', bytes => bytes.subarray(0, 4000)),
      message: /disk\.cow: its header is cut off after 4000 bytes; restore it/,
    },
    {
      title: 'cow of UML, version 1',
      make: cow('uml-2', () => Buffer.from('MOOO\x01\0\0\0'.padEnd(512, '\0'))),
      message: /disk\.cow: this is a cow image of UML, version 1, which is not read; .*uml_moo/,
    },
    {
      title: 'cow, aligned to nothing',
      make: cow('uml-3', bytes => bytes.fill(0, 24, 28)),
      message: /disk\.cow: the header aligns data to 0 bytes/,
    },
    {
      title: 'cow whose backing file is elsewhere',
      make: cow('uml-3', bytes => bytes),
      message: /disk\.cow: its backing file "\/home\/sam\/base\.raw"/,
    },
    {
      title: 'qcow, cut off in its header',
      make: qcow(bytes => bytes.subarray(0, 40)),
      message: /disk\.qcow: the qcow header is cut off after 40 bytes; restore it/,
    },
    {
      title: 'qcow, clusters of 2^40 bytes',
      make: qcow(bytes => bytes.fill(40, 32, 33)),
      message: /disk\.qcow: the header gives bytes of a cluster of 2\^40/,
    },
    {
      title: 'qcow, a disk of 2^60 bytes',
      make: qcow(bytes => bytes.fill(0x10, 24, 25)),
      message: /disk\.qcow: the disk is too large/,
    },
    {
      title: 'qcow, an encryption that is not known',
      make: qcow(bytes => bytes.fill(2, 39, 40)),
      message: /disk\.qcow: encryption method 2 is not known/,
    },
  ]
  for (const one of cases) await check(t, one)
})

t.test('encrypted', async t => {
  const encrypted = (method: number) => built({}, bytes => bytes.writeUInt32BE(method, 32))
  const luks = (change?: (bytes: Buffer) => void) => (folder: string) => {
    const area = Buffer.alloc(16)
    area.writeBigUInt64BE(BigInt(LUKS_AT))
    area.writeBigUInt64BE(BigInt(LUKS.length), 8)
    const file = built({ extensions: [{ type: 0x0537be77, data: area }] }, bytes =>
      bytes.writeUInt32BE(2, 32),
    )(folder)
    const container = Buffer.from(LUKS)
    change?.(container)
    const bytes = Buffer.alloc(LUKS_AT + container.length)
    readFileSync(file).copy(bytes)
    container.copy(bytes, LUKS_AT)
    writeFileSync(file, bytes)
    return file
  }
  const wrong = sharedFolder(t)
  writeFileSync(join(wrong, 'passphrase'), 'another\n')
  const args = ['--passphrase-file', join(wrong, 'passphrase')]
  const [slot, used] = [slotAt(0), slotAt(0) + SLOT_AT.iterations]
  const cases: Case[] = [
    {
      title: 'AES without a passphrase',
      make: encrypted(1),
      message: /disk\.qcow2: it is encrypted; .*--passphrase-file/,
    },
    {
      title: 'LUKS without a passphrase',
      make: luks(),
      message: /disk\.qcow2: it is encrypted; .*--passphrase-file/,
    },
    {
      title: 'qcow without a passphrase',
      make: qcow(bytes => bytes.fill(1, 39, 40)),
      message: /disk\.qcow: it is encrypted; .*--passphrase-file/,
    },
    {
      title: 'LUKS without a header',
      make: encrypted(2),
      message: /disk\.qcow2: .*LUKS but says nowhere where the LUKS header is/,
    },
    {
      title: 'a wrong passphrase',
      args,
      make: luks(),
      message: /disk\.qcow2: the passphrase is wrong/,
    },
    {
      title: 'a file of the passphrase that is missing',
      args: ['--passphrase-file', join(wrong, 'gone')],
      make: luks(),
      message: /the passphrase file .*gone cannot be opened: no such file/,
    },
    {
      title: 'LUKS, a cipher that is not known',
      args,
      make: luks(bytes => bytes.write('serpent\0', AT.cipherName)),
      message: /disk\.qcow2: its LUKS header uses the cipher "serpent"/,
    },
    {
      title: 'LUKS, 2^32 - 1 iterations',
      args,
      make: luks(bytes => bytes.writeUInt32BE(2 ** 32 - 1, used)),
      message: /disk\.qcow2: a passphrase would take \d+ rounds of "?sha256/,
    },
    {
      title: 'LUKS, key material beyond the end',
      args,
      make: luks(bytes => bytes.writeUInt32BE(2 ** 32 - 1, slot + SLOT_AT.keySectors)),
      message: /disk\.qcow2: its LUKS key slot 0 reaches beyond/,
    },
    {
      title: 'LUKS, 2^32 - 1 stripes',
      args,
      make: luks(bytes => bytes.writeUInt32BE(2 ** 32 - 1, slot + SLOT_AT.stripes)),
      message: /disk\.qcow2: its LUKS key slot 0 has 4294967295 stripes/,
    },
    {
      title: 'LUKS, a key of 2^32 - 1 bytes',
      args,
      make: luks(bytes => bytes.writeUInt32BE(2 ** 32 - 1, AT.keyBytes)),
      message: /disk\.qcow2: its LUKS header has a key of 4294967295 bytes/,
    },
  ]
  for (const one of cases) await check(t, one)
})

t.test('files that the user may not read', needsRoot(), async t => {
  const place = await ordinaryUser(t)
  const make = (folder: string) => {
    copyFileSync(SAMPLE, join(folder, 'disk.qcow2'))
    chmodSync(join(folder, 'disk.qcow2'), 0o600)
    return join(folder, 'disk.qcow2')
  }
  const message = /disk\.qcow2: it cannot be opened: permission denied; check that you may read it/
  await check(t, { title: 'the image', make, message }, place)

  const inClosed = (folder: string) => {
    mkdirSync(join(folder, 'closed'), { mode: 0o700 })
    return make(join(folder, 'closed'))
  }
  await check(t, { title: 'its folder', make: inClosed, message: /permission denied/ }, place)

  const withBase = (folder: string) => {
    writeFileSync(join(folder, 'base.img'), Buffer.alloc(4096), { mode: 0o600 })
    return backed('base.img')(folder)
  }
  const ofBase = /its backing file "base\.img" cannot be opened: permission denied/
  await check(t, { title: 'its backing file', make: withBase, message: ofBase }, place)
})
