// Behavioural model of the iCE40 block RAM: 4,096 bits, a read port and a write port, each with its
// clock and its width: mode 0 is 256 words of 16 bits, mode 1 512 of 8, mode 2 1,024 of 4, mode 3
// 2,048 of 2. RADDR[7:0] and WADDR[7:0] say which 16 bits; of each group of 2**mode neighbouring bits
// the upper address bits say which one. Bits of a narrow port stand where the cell has them, one a
// group.
//
// What a read gives of a word that is written at the same edge is not specified; here the old one's
// complement, so that nobody gets by with it.
// Source of the behaviour: Lattice FPGA-TN-02002, memory usage guide for iCE40 devices.

module SB_RAM40_4K (
    output reg [15:0] RDATA,
    input             RCLK,
    input             RCLKE,
    input             RE,
    input      [10:0] RADDR,
    input             WCLK,
    input             WCLKE,
    input             WE,
    input      [10:0] WADDR,
    input      [15:0] MASK,   // of mode 0: 1 keeps a bit
    input      [15:0] WDATA
);
    parameter READ_MODE = 0;
    parameter WRITE_MODE = 0;

    reg [15:0] mem [0:255];
    integer i;

    // Where a group's bit stands on a narrow port: the middle one of two, four or eight.
    function integer place(input integer mode, input integer bit_);
        case (mode)
            0: place = bit_;
            1: place = bit_ & ~1;
            2: place = (bit_ & ~3) | 1;
            default: place = (bit_ & ~7) | 3;
        endcase
    endfunction

    function [15:0] group(input integer mode, input [2:0] chosen);
        for (i = 0; i < 16; i = i + 1)
            group[i] = (i & ((1 << mode) - 1)) == (chosen & ((1 << mode) - 1));
    endfunction

    wire [15:0] kept = WRITE_MODE == 0 ? MASK : ~group(WRITE_MODE, WADDR[10:8]);
    wire [15:0] wanted = group(READ_MODE, RADDR[10:8]);

    wire collides = WE & WCLKE & WADDR[7:0] == RADDR[7:0];

    always @(posedge WCLK)
        if (WE & WCLKE)
            for (i = 0; i < 16; i = i + 1)
                if (!kept[i])
                    mem[WADDR[7:0]][i] <= WDATA[place(WRITE_MODE, i)];

    always @(posedge RCLK)
        if (RE & RCLKE) begin
            RDATA <= 0;
            for (i = 0; i < 16; i = i + 1)
                if (wanted[i])
                    RDATA[place(READ_MODE, i)] <= mem[RADDR[7:0]][i] ^ collides;
        end
endmodule
