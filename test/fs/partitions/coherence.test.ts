/** Files that show the same bytes: which requests wait for the kernel to drop pages, and what it is told to drop. */
import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import t, { type Test } from 'tap'
import { CachedPages } from '../../../src/fs/partitions/cached-pages.js'
import { Coherence, Gaps, HANDED_OVER, type Job } from '../../../src/fs/partitions/coherence.js'
import { CoherenceService } from '../../../src/fs/partitions/coherence-service.js'
import type { Responder } from '../../../src/fs/protocol/opcodes.js'
import { WRITE_CACHE } from '../../../src/fs/protocol/protocol.js'
import { TableWrites } from '../../../src/fs/partitions/table-writes.js'
import type { FilePlace } from '../../../src/fs/writing/truncations.js'
import { tempFolder } from '../../support/run.js'
import { message, readIn, u32, u64 } from '../messages.js'

const [READ, WRITE, FSYNC, FALLOCATE] = [15, 16, 20, 43]
const [DISK, PART, OTHER] = [16, 17, 18]
const DEVICE = 9
const PLACES: readonly FilePlace[] = [
  { file: DISK, disk: DISK, start: 0, end: Number.POSITIVE_INFINITY },
  { file: PART, disk: DISK, start: 1000, end: 9000 },
  { file: OTHER, disk: 99, start: 0, end: 9000 },
]
const placeOf = (nodeid: number) => PLACES.find(({ file }) => file === nodeid)

const writeOf = (node: number, offset: number, size: number, writeFlags = 0) => {
  const args = `${u64(1)} ${u64(offset)} ${u32(size)} ${u32(writeFlags)} ${u64(0)} ${u64(0)}`
  return message({ opcode: WRITE, node, args })
}
/** A READ of a map: nobody is named for whom the kernel reads. */
const pageOf = (node: number, offset: number, size: number) =>
  message({ opcode: READ, node, args: readIn({ offset, size }) })
const readOf = (node: number) => {
  const read = pageOf(node, 0, 4096)
  read.writeUInt32LE(2, 40 + 20)
  return read
}

/** A worker whose responder answers with 20 bytes, and what it hands over. */
function worker(pages = new CachedPages()) {
  const { port1, port2 } = new MessageChannel()
  const gaps = new Gaps()
  const tables = new TableWrites()
  let meanwhile = () => {}
  const calls: string[] = []
  const responder = {
    reply: Buffer.from('the reply of a worker'),
    answer: ({ length }: Buffer) => {
      calls.push(`answer ${length}`)
      meanwhile()
      return 20
    },
    refuse: (_: Buffer, errno: number) => -errno,
  } as unknown as Responder
  const coherence = new Coherence({
    ...{ responder, pages, gaps, tables, placeOf, jobs: port1 },
    touchesTable: ({ from }) => from < 512,
  })
  return {
    pages,
    gaps,
    tables,
    calls,
    answer: (request: Buffer) => coherence.answer(request, request.length, DEVICE),
    /** Does something while the next request is answered. */
    during(act: () => void) {
      meanwhile = () => {
        meanwhile = () => {}
        act()
      }
    },
    job: (): Job | undefined => receiveMessageOnPort(port2)?.message,
    close: () => port1.close(),
  }
}

t.test('without maps nothing waits', async t => {
  const { answer, job, close, pages } = worker()
  for (const request of [
    readOf(PART),
    writeOf(DISK, 600, 100),
    message({ opcode: FSYNC, node: DISK }),
  ]) {
    t.equal(answer(request), 20)
  }
  t.equal(job(), undefined)
  t.notOk(pages.has({ disk: DISK, from: 0, to: 2 ** 50 }))
  close()
})

t.test('a write goes to the other thread where a map has pages', async t => {
  const { answer, job, close, calls } = worker()
  t.equal(answer(pageOf(PART, 4096, 4096)), 20)
  // Beside these pages, of another disk, and of a file that cannot be written.
  for (const [node, offset] of [
    [DISK, 5000],
    [DISK, 9192],
    [PART, 0],
    [OTHER, 5096],
    [20, 5096],
  ] as const) {
    t.equal(answer(writeOf(node, offset, 96)), 20)
  }
  t.equal(job(), undefined)
  calls.length = 0
  for (const [node, offset] of [
    [DISK, 5050],
    [PART, 4200],
  ] as const) {
    const request = writeOf(node, offset, 96)
    t.equal(answer(request), HANDED_OVER)
    t.same(job(), { message: Uint8Array.from(request), device: DEVICE })
  }
  t.same(calls, [], 'nothing is written before the pages are gone')
  const punch = `${u64(1)} ${u64(0)} ${u64(2 ** 40)} ${u32(3)} 00000000`
  t.equal(answer(message({ opcode: FALLOCATE, node: DISK, args: punch })), HANDED_OVER)
  close()
})

t.test('a page that is read while the bytes are written', async t => {
  const { answer, job, close, during, gaps } = worker()
  during(() => answer(pageOf(PART, 0, 4096)))
  t.equal(answer(writeOf(DISK, 1500, 100)), 0, 'the reply waits')
  const reply = Uint8Array.from(Buffer.from('the reply of a worke'))
  t.same(job(), { reply, device: DEVICE, range: { disk: DISK, from: 1500, to: 1600 } })
  during(() => gaps.add(1000, 8000))
  t.equal(answer(writeOf(DISK, 9000, 10)), 0, 'a gap that it zeroes counts, too')
  t.match(job(), { range: { from: 1000, to: 9010 } })
  close()
})

t.test('a page that is written back is answered at once, and fsync waits', async t => {
  const { answer, job, close } = worker()
  answer(pageOf(PART, 0, 4096))
  t.equal(answer(writeOf(PART, 0, 4096, WRITE_CACHE)), 20)
  t.equal(job(), undefined, 'nobody else has pages')
  answer(pageOf(DISK, 4096, 4096))
  t.equal(answer(writeOf(PART, 0, 4096, WRITE_CACHE)), 20)
  t.same(job(), { range: { disk: DISK, from: 1000, to: 5096 }, except: PART, ticket: 1 })
  t.equal(answer(message({ opcode: FSYNC, node: PART })), 0)
  t.match(job(), { device: DEVICE, after: 1 })
  close()
})

/** The service with a device that notes what it is told. */
function service(t: Test, pages: CachedPages, tables = new TableWrites()) {
  const file = join(tempFolder(t), 'device')
  const device = openSync(file, 'w')
  t.teardown(() => closeSync(device))
  const events: string[] = []
  const noted = () => {
    const all = readFileSync(file)
    const found = []
    for (let at = 0; at < all.length; at += 40) {
      found.push([16, 24, 32].map(field => Number(all.readBigUInt64LE(at + field))).join(' '))
    }
    return found
  }
  const { port1, port2 } = new MessageChannel()
  const served = new CoherenceService({
    ...{ pages, tables, placeOf, gaps: new Gaps(), adopt: () => {} },
    touchesTable: () => false,
    askTables: () => events.push('ask'),
    responder: { reply: Buffer.from('answer') } as unknown as Responder,
    answer: () => {
      events.push(`answer after ${noted().length}`)
      pages.note(PLACES[1] as FilePlace, 0, 4096)
      return 6
    },
    send: (to, reply, bytes) => {
      events.push(`${to}: ${reply.toString('latin1', 0, bytes)} after ${noted().length}`)
    },
  })
  served.begin(device)
  served.add(port2)
  return {
    events,
    noted,
    listed: () => served.listed(),
    all(...jobs: Job[]) {
      for (const job of jobs) port1.postMessage(job)
      served.end()
    },
  }
}

t.test('the thread drops before a write and after it', async t => {
  const pages = new CachedPages()
  pages.note(PLACES[1] as FilePlace, 4096, 4096)
  pages.note(PLACES[0] as FilePlace, 0, 8192)
  const { all, events, noted } = service(t, pages)
  all({ message: Uint8Array.from(writeOf(DISK, 6000, 1000)), device: 5 })
  // The pages that others have changed come first; all that was read meanwhile follows, also through the file itself.
  t.equal(noted()[0], '17 5000 1000')
  t.same(noted().slice(1).sort(), ['16 6000 1000', '17 5000 1000'])
  t.same(events, ['answer after 1', '5: answer after 3'])
})

t.test(
  'the thread holds replies until their drops are done, in whatever order they come',
  async t => {
    const pages = new CachedPages()
    const tickets = [pages.ask(), pages.ask(), pages.ask()]
    t.equal(pages.pending(), 3)
    const { all, events } = service(t, pages)
    const range = { disk: DISK, from: 0, to: 1 }
    const drop = (index: number): Job => ({ range, except: 0, ticket: tickets[index] as number })
    const bytes = (text: string) => Uint8Array.from(Buffer.from(text))
    all(
      { reply: bytes('second'), device: 5, after: 2 },
      drop(2),
      drop(0),
      { reply: bytes('first'), device: 5, after: 1 },
      drop(1),
    )
    t.same(events, ['5: first after 0', '5: second after 0'])
    t.equal(pages.pending(), undefined)
  },
)

t.test('who syncs waits for the listing once a table may have changed', async t => {
  const { answer, job, close, tables } = worker()
  const sync = message({ opcode: FSYNC, node: PART })
  t.equal(answer(writeOf(DISK, 512, 100)), 20)
  t.equal(answer(sync), 20)
  t.equal(answer(writeOf(DISK, 0, 100)), 20)
  t.notOk(tables.areShown)
  t.equal(answer(sync), 0)
  const reply = Uint8Array.from(Buffer.from('the reply of a worke'))
  t.same(job(), { reply, device: DEVICE, after: undefined })
  const { all, events, listed } = service(t, new CachedPages(), tables)
  all({ reply, device: 5, after: undefined }, { reply, device: 6, after: undefined })
  t.same(events, ['ask', 'ask'])
  tables.show(tables.count)
  listed()
  listed()
  t.same(events.slice(2), ['5: the reply of a worke after 0', '6: the reply of a worke after 0'])
  t.equal(answer(sync), 20)
  close()
})

t.test('pages are noted until they are dropped whole', async t => {
  const pages = new CachedPages()
  const [, part] = PLACES as [FilePlace, FilePlace]
  pages.note(part, 4096, 4096)
  pages.note(part, 0, 4096)
  const range = { disk: DISK, from: 1000, to: 9000 }
  t.same(pages.take(range), [{ file: PART, offset: 0, length: 8000 }])
  t.ok(pages.has(range), 'the last page reaches past the range')
  t.same(pages.take({ ...range, from: 0, to: 2 ** 40 }, PART), [])
  t.same(pages.take({ ...range, from: 0, to: 2 ** 40 }), [{ file: PART, offset: 0, length: 8192 }])
  t.notOk(pages.has(range))
  let files = 0
  while (pages.note({ ...part, file: 100 + files }, 0, 4096)) files++
  t.equal(files, 1024)
})
