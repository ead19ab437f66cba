// Behavioural model of an SPI NOR flash of 16 MiB, as far as reading goes: power-down (0xB9),
// release from it (0xAB), read (0x03), fast read with two outputs (0x3B) and four (0x6B), and what
// makes the latter possible: the bit QE of the second status register, for as long as there is power
// (0x50, 0x31). SPI mode 0.
//
// It starts powered down, as the configuration of an iCE40 leaves it. Powered down it obeys nothing
// but 0xAB, and for WAKE_NS after that nothing at all. While it does not send, `cipo` is random: on
// a board it floats; so it is from HOLD_NS to VALID_NS after the edge that calls for the next bits.
// Where it sends on more pins, it drives `copi` with `io0` while `drives` is high, and IO2 and IO3 with
// `io2` and `io3` while `quad_drives` is. Until QE is set the latter are write protection and hold,
// and must be high while it is selected. What a host must not do (timing, clock while deselected,
// commands cut short) ends the simulation.
//
// +flash=FILE is written at byte +flash_offset=N (decimal); all else is erased. A bench can also
// write `mem`.
// Source of commands and times: Winbond W25Q128JV, revision F, tables 8.1 and 9.6, sections 7.1, 8.2.

`timescale 1ns / 1ps

module spi_flash #(
    parameter SIZE     = 1 << 24,  // bytes
    parameter WAKE_NS  = 3000.0,   // tRES1
    parameter CLOCK_NS = 20.0,     // 1 / fR, of 0x03
    parameter FAST_NS  = 9.6,      // 1 / fC, of all others
    parameter HOLD_NS  = 1.5,      // tCLQX
    parameter VALID_NS = 6.0,      // tCLQV
    parameter SELECT_NS = 5.0,     // tSLCH
    parameter DESELECT_NS = 50.0   // tSHSL2
) (
    input      cs_n,
    input      clk,
    input      copi,
    output reg cipo,
    output reg drives = 0,
    output reg io0,
    input      wp_n,           // IO2 and IO3 as they are outside
    input      hold_n,
    output reg quad_drives = 0,
    output reg io2,
    output reg io3
);
    localparam POWER_DOWN = 8'hB9, RELEASE = 8'hAB, READ = 8'h03, DUAL = 8'h3B, QUAD = 8'h6B;
    localparam WRITABLE = 8'h50, WRITE_STATUS_2 = 8'h31;

    reg [7:0] mem [0:SIZE-1];

    reg        asleep = 1;
    realtime   awake_at = 0;    // obeys from then on
    realtime   selected_at = 0, deselected_at = -1000, rose_at = -1000;
    reg [7:0]  command = 0;
    reg [23:0] address = 0;
    reg        selected = 0;
    reg        obeys = 0;       // this command
    integer    bits = 0;        // clocks since selection
    reg        hurries = 0;     // they were too fast for 0x03
    reg        writable = 0;    // the next command may write the status register
    reg        quad_enabled = 0;
    wire       quad = command == QUAD;
    wire       fast = command == DUAL || quad;
    wire [5:0] first = fast ? 40 : 32;  // clocks before the first data

    string  file;
    integer handle, offset, i, got;

    initial begin
        for (i = 0; i < SIZE; i = i + 1) mem[i] = 8'hFF;
        if ($value$plusargs("flash=%s", file)) begin
            if (!$value$plusargs("flash_offset=%d", offset)) offset = 0;
            handle = $fopen(file, "rb");
            if (handle == 0) $fatal(1, "spi_flash: cannot read %s", file);
            got = $fread(mem, handle, offset);
            $fclose(handle);
        end
    end

    always @(negedge cs_n) begin
        if (clk !== 0) $fatal(1, "spi_flash: clk must be low when cs_n falls (mode 0)");
        if ($realtime - deselected_at < DESELECT_NS)
            $fatal(1, "spi_flash: cs_n must stay high for %0.1f ns", DESELECT_NS);
        selected = 1;
        selected_at = $realtime;
        bits  = 0;
        hurries = 0;
        obeys = $realtime >= awake_at;
    end

    always @(posedge cs_n) if (selected) begin
        selected = 0;
        if (bits < 8 || ((command == READ || fast) && bits < first)
            || (command == WRITE_STATUS_2 && bits != 16))
            $fatal(1, "spi_flash: command of the wrong length: %0d bits", bits);
        if (obeys && command == WRITE_STATUS_2 && writable) quad_enabled = address[1];
        if (obeys) writable = command == WRITABLE;
        if (obeys && bits == 8) begin
            if (command == RELEASE && asleep) begin
                asleep   = 0;
                awake_at = $realtime + WAKE_NS;
            end
            if (command == POWER_DOWN) asleep = 1;
        end
        deselected_at = $realtime;
        drives = 0;
        quad_drives = 0;
    end

    // What stands on `clk` when power comes is no edge.
    always @(posedge clk) if ($realtime > 0) begin
        if (cs_n) $fatal(1, "spi_flash: clk must rest while cs_n is high");
        if (bits > 0 && $realtime - rose_at < CLOCK_NS) hurries = 1;
        if ($realtime - selected_at < SELECT_NS || $realtime - rose_at < FAST_NS
            || (bits >= 8 && command == READ && hurries))
            $fatal(1, "spi_flash: clk is too fast");
        rose_at = $realtime;
        if (bits < 8) command = {command[6:0], copi};
        else if (bits < 32) address = {address[22:0], copi};
        bits = bits + 1;
        if (bits == 8) begin
            if (command != POWER_DOWN && command != RELEASE && command != READ && command != DUAL
                && command != QUAD && command != WRITABLE && command != WRITE_STATUS_2)
                $fatal(1, "spi_flash: unknown command %h", command);
            if (asleep && command != RELEASE) obeys = 0;
            if (command == QUAD && !quad_enabled) obeys = 0;
        end
        if (!quad_enabled && (wp_n !== 1 || hold_n !== 1))
            $fatal(1, "spi_flash: write protection and hold must be high");
    end

    always @(copi)
        if (!cs_n && clk && bits <= 32) $fatal(1, "spi_flash: copi must rest while clk is high");

    // The first bits of a byte come with the falling edge after the last ones of the byte before.
    reg        next_cipo, next_io0, next_io2, next_io3, next_drives;
    always @(negedge clk)
        if (!cs_n) begin
            {next_io3, next_io2, next_cipo, next_io0} = $urandom;
            next_drives = obeys && fast && bits >= first;
            if (obeys && command == READ && bits >= first) begin
                next_cipo = mem[address][7 - bits % 8];
                if (bits % 8 == 7) address = address + 1;
            end
            if (next_drives && quad) begin
                {next_io3, next_io2, next_cipo, next_io0} = mem[address] >> 4 - 4 * (bits % 2);
                if (bits % 2 == 1) address = address + 1;
            end else if (next_drives) begin
                {next_cipo, next_io0} = mem[address] >> 6 - 2 * (bits % 4);
                if (bits % 4 == 3) address = address + 1;
            end
            #(HOLD_NS);
            {io3, io2, cipo, io0} = $urandom;
            #(VALID_NS - HOLD_NS);
            {io3, io2, cipo, io0} = {next_io3, next_io2, next_cipo, next_io0};
            drives = next_drives && !cs_n;
            quad_drives = drives && quad;
        end
endmodule
